"""Our methods beside what their authors' code made of the same inputs.

`golden/` holds the inputs and the figures, no code and no picture of anybody. Every file has a
test here; `python -m tests.reference` runs them all and writes docs/reference.md from what they
measured.
"""

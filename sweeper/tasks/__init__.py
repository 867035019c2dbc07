"""Tasks: what a sample is, its loss, and what ACC and ASR mean there. One file, one task.

A new task is one file here, one in `sweeper/data/` and one in `sweeper/models/`; nothing else is
edited. The contract is `sweeper.engine.task.Task`; docs/tasks.md shows one of your own.
"""

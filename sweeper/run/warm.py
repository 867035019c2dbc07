"""What the fork server imports once, so that no child has to.

It computes nothing: torch chooses its kernels at the first operation, and a child may want others
(`engine.portable`).
"""

import gc
import tempfile

import torch._dynamo

from sweeper.run import cells, child

__all__ = ["cells", "child"]

assert torch._dynamo  # the first optimiser of a process imports it, which takes a second
tempfile.gettempdir()  # finds out by writing a file, which would be seen of a method
gc.freeze()  # else the first collection of a child goes through, and copies, all of this

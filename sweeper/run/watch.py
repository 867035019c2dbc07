"""Looks over the shoulder of a method that does not ship: what it reaches for beyond its case.

An audit hook of Python, so it sees what goes through Python and nothing below it: evidence, no
proof. It cannot be taken out again; only a child process installs it.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

HIDDEN = tuple(f"sweeper.{room}" for room in "data store run plan tables analyses api cli".split())
"""What leads to the test set, the trigger, or the store."""
MOST = 20
"""What is noted at most."""
_SYSTEM = ("/proc/", "/dev/", "/sys/", "/etc/")
_PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
_LOOKS = ("sys._getframe", "sys._current_frames", "gc.get_objects", "gc.get_referrers")


def begins(paths: Iterable[str]) -> tuple[str, ...]:
    """How the paths of all that lies in folders, or is one of these files, begin."""
    whole = {os.path.realpath(path) for path in paths}
    return tuple(f"{path}{os.sep}" if os.path.isdir(path) else path for path in whole)


def has_packages(folder: str) -> bool:
    """Whether packages are installed in a folder."""
    return any(Path(folder).glob("*.dist-info"))


class Watch:
    """What a method was seen to do."""

    def __init__(self, ours: Iterable[str], theirs: Iterable[str]) -> None:
        """Look on from now on.

        Args:
            ours: Folders of the sweeper, read like Python's own.
            theirs: Folders, or the file, of the method, of which its code may be read.
        """
        paths = sysconfig.get_paths()
        python = [paths[name] for name in ("stdlib", "purelib", "platlib")]
        sites = filter(has_packages, sys.path)
        self._libraries = begins([sys.prefix, sys.base_prefix, *python, *sites, *ours])
        self._theirs = begins(theirs)
        self._seen: dict[str, None] = {}
        self._busy = False
        sys.addaudithook(self._hear)

    @property
    def seen(self) -> list[str]:
        """What was seen so far, each thing once."""
        return list(self._seen)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self._busy or len(self._seen) >= MOST:
            return
        self._busy = True
        try:
            if text := self._words(event, args):
                self._seen[text[:200]] = None
        except Exception:  # a hook that raises would stop the method
            self._seen[f"{event}, which could not be read"] = None
        finally:
            self._busy = False

    def _words(self, event: str, args: tuple[Any, ...]) -> str:
        """What an event is noted as; empty where it is none of ours."""
        if event == "open":
            return self._opened(args[0])
        if event == "import" and str(args[0]).startswith(HIDDEN):
            return f"import {args[0]}"
        if event in _PROCESSES:
            return f"{event}: {args[0] if event != 'socket.connect' else args[1]}"
        if event in _LOOKS:
            caller = self._caller()  # of code that was never in a file the name is no path
            unnamed = caller.startswith("<") and not caller.startswith("<frozen")
            return event if unnamed or caller.startswith(self._theirs) else ""
        return ""

    def _opened(self, path: Any) -> str:
        if not isinstance(path, str | bytes | os.PathLike):
            return ""  # a file that is open already
        whole = os.path.realpath(os.fsdecode(path))
        if self._is_library(whole) or whole.startswith(_SYSTEM):
            return ""
        if whole.startswith(self._theirs) and whole.endswith((".py", ".pyc")):
            return ""
        return f"open {whole}"

    def _is_library(self, path: str) -> bool:
        return path.startswith(self._libraries)

    def _caller(self) -> str:
        """The file of who raised the event; of who asked `inspect` to."""
        frame: FrameType | None = sys._getframe(3)
        while frame and frame.f_code.co_filename.endswith(f"{os.sep}inspect.py"):
            frame = frame.f_back
        name = frame.f_code.co_filename if frame else ""
        return name if name.startswith("<") else os.path.realpath(name)

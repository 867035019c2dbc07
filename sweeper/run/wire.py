"""Messages between a cell and the child process its method runs in: words and tensors, no objects.

A message is a kind, JSON values and named tensors (safetensors). Nothing that arrives can be code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Message:
    """What arrived."""

    kind: str
    """What it is about."""
    values: Mapping[str, Any]
    """JSON values."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors by name, on the CPU."""


class Wire:
    """One end of the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, kind: str, tensors: Mapping[str, Tensor] | None = None, **values: Any) -> None:
        """Send a message; tensors of any device arrive on the CPU."""
        named = {name: value.detach().cpu().contiguous() for name, value in (tensors or {}).items()}
        self._connection.send_bytes(json.dumps([kind, values, bool(named)]).encode())
        if named:
            import safetensors.torch  # here: it asks for torch at once

            self._connection.send_bytes(safetensors.torch.save(named))

    def receive(self) -> Message:
        """Wait for a message.

        Raises:
            EOFError: The other end is gone.
        """
        kind, values, more = json.loads(self._connection.recv_bytes())
        tensors = {}
        if more:
            import safetensors.torch  # here: it asks for torch at once

            tensors = safetensors.torch.load(self._connection.recv_bytes())
        return Message(kind, values, tensors)

    def fileno(self) -> int:
        """What the system knows it by, to wait for it beside others."""
        return self._connection.fileno()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

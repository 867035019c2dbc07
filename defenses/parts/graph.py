"""A network as the graph of its layers, for methods that ask which layer reads which."""

from __future__ import annotations

from torch import fx, nn


class _Layers(fx.Tracer):
    """Does not look into convolutions, of whatever class they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def graph(model: nn.Module) -> fx.Graph:
    """Trace a network; its layers are nodes of kind `call_module`."""
    return _Layers().trace(model)

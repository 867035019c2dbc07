"""What a module's text says: the hash of what of it runs, and the modules it imports."""

from __future__ import annotations

import ast
import hashlib
from typing import Any

Import = tuple[int, str, list[str]]
"""Level, module, names: `from ..a import b` is (2, "a", ["b"])."""


def parsed(text: str | bytes) -> tuple[str, list[Import]]:
    """Return the hash of what a module with this text runs, and what it imports.

    Raises:
        SyntaxError, ValueError: It is no Python.
    """
    tree = ast.parse(text)
    imports: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            imports.append((node.level, node.module or "", names))
    return _of_tree(tree), imports


def _of_tree(tree: ast.AST) -> str:
    """The hash of what runs; not `ast.dump`, which is written otherwise by each Python."""
    words: list[str] = []

    def put(value: Any) -> None:
        if isinstance(value, ast.AST):
            words.append(f"({type(value).__name__}")
            for name in value._fields:
                part = getattr(value, name, None)
                if isinstance(value, ast.ClassDef) and name == "body":
                    part = [statement for statement in part or () if not _says_where(statement)]
                if part is not None and part != []:
                    words.append(name)
                    put(part)
            words.append(")")
        elif isinstance(value, list):
            for part in value:
                if not _is_remark(part):
                    put(part)
                    words.append(",")
        else:
            words.append(repr(value))

    put(tree)
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def _is_remark(node: Any) -> bool:
    """Whether a statement is a string alone: a docstring of whatever stands before or around it."""
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return constant and isinstance(node.value.value, str)


def _says_where(node: ast.stmt) -> bool:
    """Whether a statement of a class says on what its cells run, `light`, which is in no key."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "ClassVar[bool]":
        targets = [node.target]
    value = getattr(node, "value", None)
    truth = isinstance(value, ast.Constant) and isinstance(value.value, bool)
    return truth and [getattr(target, "id", "") for target in targets] == ["light"]

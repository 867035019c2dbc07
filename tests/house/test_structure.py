"""The rules of the house a parser can check: layers, banned calls, docstrings, sizes, paths."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.places import ROOT

ROOMS = """
core
data models engine
tasks
attacks defenses
plan
store tables
run view
analyses api
cli
__main__
""".split("\n")
"""The rooms, lowest first: a module imports from lower lines, and from its own room."""
LINES, LENGTH = 400, 60


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the product: dotted name -> file."""
    found = {}
    for package in ("attacks", "defenses", "sweeper"):
        for path in sorted((ROOT / package).rglob("*.py")):
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[dotted.removesuffix(".__init__")] = path
    return found


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


Sources = dict[str, ast.Module]
"""Dotted name of a module -> what stands in it."""


@functools.cache
def product() -> Sources:
    return {module: tree(module) for module in modules()}


@functools.cache
def imports(source: ast.AST) -> list[tuple[str, int]]:
    """Every name a module imports, lazily or for types alone too: (dotted name, line)."""
    found = []
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def imported(module: str) -> list[tuple[str, int]]:
    return imports(tree(module))


def room(dotted: str) -> str:
    """The room a dotted name lies in; empty for what is not ours, and for `sweeper` itself."""
    first, second, *_ = [*dotted.split("."), ""]
    return first if first in ("attacks", "defenses") else second if first == "sweeper" else ""


def level(name: str) -> int:
    found = [place for place, line in enumerate(ROOMS) if name in line.split()]
    assert found, f"{name} is no room: put it into one, or say in ROOMS what lies below it"
    return found[0]


def upward(sources: Sources) -> list[str]:
    """Imports that do not go down; sweeps that ship and templates are data and lie in no room."""
    found = []
    for module, source in sources.items():
        own = room(module)
        if own in ("", "sweeps") or module.startswith("sweeper.cli.templates."):
            continue
        for dotted, line in imports(source):
            other = room(dotted) or ("__main__" if dotted == "sweeper" else "")
            if other and other != own and level(other) >= level(own):
                found.append(f"{module}:{line} imports {dotted}: that is upward")
    return found


def of(dotted: str, sources: Sources) -> str:
    """The module a dotted name stands in; empty for what is not ours."""
    while dotted and dotted not in sources:
        dotted = dotted.rpartition(".")[0]
    return dotted


def graph(sources: Sources) -> dict[str, set[str]]:
    """Module -> the modules of ours it imports; `sweeper` itself imports nothing it needs."""
    return {
        module: {of(dotted, sources) for dotted, _ in imports(source)} - {module, "", "sweeper"}
        for module, source in sources.items()
    }


def circle(sources: Sources) -> list[str]:
    """Modules that import each other in a round; empty where there are none."""
    try:
        graphlib.TopologicalSorter(graph(sources)).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def named(pattern: str) -> list[str]:
    return [module for module in modules() if re.fullmatch(pattern, module)]


def test_imports_go_down() -> None:
    assert not upward(product())


def test_there_are_no_circles() -> None:
    assert not circle(product())


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("sweeper.core.planted", "from sweeper.run import driver"),
        ("sweeper.tables.planted", "import sweeper.store.artifacts"),
        ("attacks.planted", "def late():\n    from defenses.base import Case"),
        ("defenses.planted", "from sweeper.plan.matrix import expand"),
        ("sweeper.run.planted", "import sweeper"),
    ],
)
def test_a_planted_import_upward_is_found(module: str, line: str) -> None:
    found = upward(product() | {module: ast.parse(line)})
    assert [said.partition(":")[0] for said in found] == [module]


def test_a_planted_circle_is_found() -> None:
    one, other = "sweeper.run.one", "sweeper.run.other"
    back = "def late():\n    import sweeper.run.one"
    planted = {one: ast.parse("from sweeper.run import other"), other: ast.parse(back)}
    assert {one, other} <= set(circle(product() | planted))


def test_every_module_lies_in_a_room() -> None:
    top = {"sweeper", "sweeper.__main__", "sweeper.api"}
    flat = {module for module in modules() if module.count(".") < 2 and "sweeper" in module}
    packages = {module for module in flat if modules()[module].name == "__init__.py"}
    assert flat - packages == top - {"sweeper"}


def test_tables_wait_for_neither_torch_nor_ray() -> None:
    """What reads a store and makes tables reaches, at import, no module that imports them."""
    light = r"store\.(ledger|claim|status|contents|garbage|follow)"
    rooms = rf"sweeper\.(tables\..*|view\..*|{light}|plan\.(source|view)|core\.rows)"
    heavy = {"torch", "torchvision", "ray"}
    for start in named(rooms):
        reached, left = set(), [start]
        while left:
            module = left.pop()
            eager = ast.Module([n for n in tree(module).body if not is_guarded(n)], [])
            for dotted, line in imports(eager):
                assert dotted.split(".")[0] not in heavy, f"{start} waits for {module}:{line}"
                if (other := of(dotted, product())) and other not in reached:
                    reached.add(other)
                    left.append(other)


def is_guarded(node: ast.stmt) -> bool:
    """Whether what stands here does not run at import."""
    return isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If)


@pytest.mark.parametrize(
    ("who", "banned"),
    [
        (r"(attacks|defenses)(\..*)?", "ray pandas pyarrow"),
        (r"sweeper\.tables\..*", "torch torchvision ray"),
        (r"(?!sweeper\.run\.(rays|meter|cluster|nodes|logs)$).*", "ray"),
        (r".*", "pickle cPickle dill cloudpickle joblib shelve marshal"),
    ],
)
def test_nobody_imports_what_is_not_theirs(who: str, banned: str) -> None:
    assert named(who)
    for module in named(who):
        for dotted, line in imported(module):
            package = dotted.split(".")[0]
            assert package not in banned.split(), f"{module}:{line} imports {dotted}"


def test_ray_is_not_imported_before_it_is_needed() -> None:
    for module in named(r"sweeper\.cli\..*"):
        for node in tree(module).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "schedule" not in ast.unparse(node)


def test_banned_calls() -> None:
    banned = {
        "print": "say it through the log or the display",
        "eval": "nothing is evaluated",
        "exec": "nothing is executed",
        "torch.load": "use sweeper.store",
        "torch.save": "use sweeper.store",
        "torch.manual_seed": "use sweeper.core.seeds.generator",
        "torch.random.manual_seed": "use sweeper.core.seeds.generator",
        "np.random.seed": "use sweeper.core.seeds.numpy_generator",
        "yaml.load": "use sweeper.plan.document",
        "yaml.safe_load": "what a user wrote is read by sweeper.plan.document",
        "time.time": "seconds are differences of time.monotonic; a clock may be set in between",
    }
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called == "torch.load" and module == "sweeper.core.weights":
                    named = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    assert named.get("weights_only") == "True", (
                        "code of a stranger's file never runs"
                    )
                    continue
                assert called not in banned, f"{module}:{node.lineno} {called}: {banned[called]}"


Documented = ast.Module | ast.ClassDef | ast.FunctionDef


def public(node: ast.AST, inside: str) -> Iterator[tuple[str, Documented]]:
    """Public classes, functions and methods: (dotted name, node)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            yield f"{inside}.{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{inside}.{child.name}")


def test_all_that_is_public_is_documented() -> None:
    for module in modules():
        text = ast.get_docstring(tree(module))
        assert text, f"{module} begins with one line that says what it is"
        assert text.splitlines()[0].endswith((".", ":")), f"{module}: a sentence"
        silent = [
            name for name, node in public(tree(module), module) if not ast.get_docstring(node)
        ]
        assert not silent, f"without a docstring: {silent}"


def undocumented(body: list[ast.stmt]) -> Iterator[str]:
    """Names of the fields of a class that no string follows."""
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_"):
            string = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if not (string and isinstance(after.value.value, str)):
                yield ast.unparse(node.target)


@functools.cache
def declared() -> frozenset[str]:
    """Fields a contract documents: its subclasses only give them values."""
    found = set()
    for module in named(r".*\.base"):
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef):
                fields = {
                    ast.unparse(part.target)
                    for part in node.body
                    if isinstance(part, ast.AnnAssign)
                }
                found |= fields - set(undocumented(node.body))
    return frozenset(found)


def test_every_field_is_documented() -> None:
    for module in modules():
        silent = [
            f"{name}.{field}"
            for name, node in public(tree(module), module)
            if isinstance(node, ast.ClassDef)
            for field in undocumented(node.body)
            if field not in declared()
        ]
        assert not silent, f"no docstring follows: {silent}"


def test_sizes() -> None:
    for module in modules():
        lines = len(modules()[module].read_text(encoding="utf-8").splitlines())
        assert lines <= LINES, f"{module} has {lines} lines: it is two ideas"
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= LENGTH, f"{module}.{node.name} has {length} lines: it is two ideas"


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_no_file_names_a_place_of_one_machine() -> None:
    places = ["work", "root", "home", "Users", "mnt", "opt", "scratch", "tmp/[a-z0-9_.-]+"]
    machine = re.compile(rf"""(?<![\w.~*}}:/-])/({"|".join(places)})/""")
    for path in tracked():
        if path.suffix in (".py", ".yaml", ".yml", ".toml", ".md", ".cfg", ".sh", ""):
            for number, line in enumerate(path.read_text(errors="ignore").splitlines(), start=1):
                found = machine.search(line)
                assert not found, f"{path.relative_to(ROOT)}:{number}: {line.strip()}"

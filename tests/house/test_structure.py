"""The rules of the house a parser can check: layers, banned calls, docstrings, sizes, paths."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = """
errors
seeds types rows source
options ledger
view claim
status
data models tasks store isolation
recipes augment
training
curvature metrics
attacks defenses
names templates
catalog new
spec
check matrix record
material walk
analyses
cells
run bundle costs
calibrate
estimate meter relay
schedule cluster display listing show analyze exchange
arguments
api
figures remote commands
cli
""".split("\n")
"""The rooms, lowest first: a module imports from lower lines only, a package also from itself."""
TABLES = (
    *("results", "stats", "layout", "published", "render", "screen", "tables", "expected"),
    *("points", "plots", "report"),
)
"""The branch beside: rows -> numbers -> what is shown. Each knows those before it, little else."""
UPWARD = {("spec", "check"), ("defenses", "catalog")}
"""`spec.load` asks, inside the function, what only the methods know; a chain finds its detector."""
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


def imported(module: str) -> Iterator[tuple[str, int]]:
    """Every name a module imports, lazily or for types alone too: (dotted name, line)."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def room(dotted: str) -> str | None:
    """The room a dotted name lies in; None for what is not ours."""
    parts = dotted.split(".")
    if parts[0] in ("attacks", "defenses"):
        return parts[0]
    if parts[0] == "sweeper" and len(parts) > 1:
        return parts[1]
    return None


def level(name: str) -> int:
    found = [place for place, line in enumerate(LEVELS) if name in line.split()]
    assert found, f"{name}: say in LEVELS which rooms it may import from"
    return found[0]


def named(pattern: str) -> list[str]:
    return [module for module in modules() if re.fullmatch(pattern, module)]


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    own = room(module)
    if own is None or own == "sweeps":
        return
    for dotted, line in imported(module):
        other = room(dotted)
        if other is None or other == own:
            continue
        where = f"{module}:{line} imports {dotted}"
        if own in TABLES:
            allowed = ("errors", "rows", "source", *TABLES[: TABLES.index(own)])
            assert other in allowed, f"{where}: tables know rows and nothing else"
        elif other in TABLES:
            assert own in ("api", "figures", "cli"), f"{where}: data flow to the tables, never back"
        elif (own, other) not in UPWARD:
            assert level(other) < level(own), f"{where}: that is upward"


def test_imports_upward_are_lazy() -> None:
    for own, other in UPWARD:
        for module in (module for module in modules() if room(module) == own):
            for node in tree(module).body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    line = ast.unparse(node)
                    assert f"sweeper.{other}" not in line and f"sweeper import {other}" not in line


def test_attacks_and_defenses_know_nothing_of_each_other() -> None:
    for own, other in (("attacks", "defenses"), ("defenses", "attacks")):
        for module in named(rf"{own}(\..*)?"):
            for dotted, line in imported(module):
                assert room(dotted) != other, f"{module}:{line} imports {dotted}"


@pytest.mark.parametrize(
    ("who", "banned"),
    [
        (r"(attacks|defenses)(\..*)?", "ray pandas pyarrow"),
        (
            rf"sweeper\.({'|'.join(TABLES)}|ledger|rows|source|errors|claim|status)",
            "torch torchvision ray",
        ),
        (r"(?!sweeper\.(schedule|meter|relay|cluster)$).*", "ray"),
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
    for node in tree("sweeper.cli").body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "schedule" not in ast.unparse(node)


@pytest.mark.parametrize("module", modules())
def test_banned_calls(module: str) -> None:
    banned = {
        "print": "say it through the log or the display",
        "eval": "nothing is evaluated",
        "exec": "nothing is executed",
        "torch.load": "use sweeper.store",
        "torch.save": "use sweeper.store",
        "torch.manual_seed": "use sweeper.seeds.generator",
        "torch.random.manual_seed": "use sweeper.seeds.generator",
        "np.random.seed": "use sweeper.seeds.numpy_generator",
        "yaml.load": "use yaml.safe_load",
    }
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "torch.load" and module == "sweeper.exchange":
                named = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert named.get("weights_only") == "True", "code of a stranger's file never runs"
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


@pytest.mark.parametrize("module", modules())
def test_all_that_is_public_is_documented(module: str) -> None:
    text = ast.get_docstring(tree(module))
    assert text, f"{module} begins with one line that says what it is"
    assert text.splitlines()[0].endswith((".", ":")), f"{module}: a sentence"
    silent = [name for name, node in public(tree(module), module) if not ast.get_docstring(node)]
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


@pytest.mark.parametrize("module", modules())
def test_every_field_is_documented(module: str) -> None:
    silent = [
        f"{name}.{field}"
        for name, node in public(tree(module), module)
        if isinstance(node, ast.ClassDef)
        for field in undocumented(node.body)
        if field not in declared()
    ]
    assert not silent, f"no docstring follows: {silent}"


@pytest.mark.parametrize("module", modules())
def test_sizes(module: str) -> None:
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

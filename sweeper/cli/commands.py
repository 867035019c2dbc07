"""Commands that bring something in or out: a method of one's own, a victim."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeper.api import STORE, Sweep
from sweeper.cli.arguments import DataOption, SetOption, Spec, StoreOption, numbers, pairs, words
from sweeper.core.errors import SweepError

Kind = Annotated[
    str, typer.Argument(help="attack or defense.", autocompletion=words("attack", "defense"))
]


def new(
    kind: Kind,
    name: Annotated[str, typer.Argument(help="Its name in a sweep file, such as my-patch.")],
    to: Annotated[
        Path | None,
        typer.Option(help="A folder of your own; default: attacks/, defenses/ of this checkout."),
    ] = None,
) -> None:
    """Write a small working method and its test, for you to change.

    Example: sweeper new defense my-tuning --to mine
    """
    from sweeper.cli import new as templates

    written = templates.write(kind, name, to)
    path = f"PYTHONPATH={shlex.quote(str(to))} " if to else ""
    typer.echo(f"{written.method}: works as it is; change it into yours")
    test = shlex.quote(str(written.test))
    typer.echo(f"{written.test}: its test: {path}python -m pytest {test}")
    if to:
        typer.echo(f"in a sweep file: {kind}s: [{written.entry}], run as {path}sweeper run ...")
    else:
        suite = f"tests/house/test_contract_{kind}s.py"
        typer.echo(f"in a sweep file: {kind}s: [{written.entry}]; {suite} tests it too")


def import_model(
    weights: Annotated[Path, typer.Argument(help="safetensors, or a file of torch.")],
    name: Annotated[str, typer.Option("--as", help="What rows and tables call it.")],
    model: Annotated[str, typer.Option(help="Its architecture; `sweeper list models`.")],
    trigger: Annotated[
        Path | None,
        typer.Option(help="RGBA picture; file of pattern and mask, or images; default: unknown."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the architecture."),
    ] = None,
    target: Annotated[int, typer.Option(help="Target label.")] = 0,
    rule: Annotated[str, typer.Option(help="all2one, or all2all: the next label.")] = "all2one",
    mean: Annotated[
        str, typer.Option(help="Inputs' mean, 0.49,0.48,0.45; default: the data's.")
    ] = "",
    std: Annotated[str, typer.Option(help="Likewise their standard deviation.")] = "",
    shape: Annotated[str, typer.Option(help="C,H,W of an image; default: the trigger's.")] = "",
    classes: Annotated[
        int | None, typer.Option(help="How many; default: as many as its one head has.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to make its folder.")] = Path("imported"),
) -> None:
    """Make a victim of a checkpoint that was trained elsewhere.

    Example: sweeper import-model net.pt --as theirs --trigger patch.png --model resnet18
    """
    from sweeper.analyses import exchange
    from sweeper.plan import source

    if not source.NAME.fullmatch(name):
        raise SweepError(f"--as: {name!r} cannot name a folder: use letters, digits and hyphens")
    given = exchange.Foreign(
        weights=weights,
        trigger=trigger,
        model=model,
        options=pairs("--option", options),
        target=target,
        rule=rule,
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        shape=numbers("--shape", shape, int, "3,32,32"),
        classes=classes,
    )
    folder = (out / name).absolute()
    _entry(exchange.import_model(given, folder), folder, name)


def export(
    spec: Spec,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    victim: Annotated[
        str | None, typer.Option(help="The victim's key, or its first digits.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All victims, as a zoo; run again, it goes on.")
    ] = False,
    archive: Annotated[
        bool, typer.Option("--archive", help="The zoo as one file too: OUT.tar.")
    ] = False,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
) -> None:
    """Write a victim, or all victims, as plain files.

    That is weights, images and metadata. All victims of a sweep make a zoo, which `sweeper import`
    takes.

    Example: sweeper export quickstart --victim 3fa9 --out victim
    """
    from sweeper.analyses import exchange, zoo, zoofiles

    if every == (victim is not None):
        raise SweepError("export: needs --victim KEY for one, or --all: write one of the two")
    if archive and not every:
        raise SweepError("--archive: is of all victims: add --all, or leave it out")
    sweep = Sweep.from_yaml(spec, overrides or [])
    context = sweep.context(store, data)
    if victim is not None:
        about = exchange.export(sweep.declared, context, victim, out)
        _entry(about, out.absolute(), out.name)
        return
    made = zoo.export(sweep.declared, context, out, _tell)
    typer.echo(f"{out}: {len(made.victims)} victims, {made.size() / 1e6:.1f} MB")
    if archive:
        path = out.absolute().with_name(f"{out.absolute().name}.tar")
        kept = zoofiles.pack(made, out, path)
        typer.echo(f"{path}: {kept.size / 1e6:.1f} MB, sha256 {kept.sha256}")


def import_(
    zoo: Annotated[Path, typer.Argument(help="A zoo's folder, or its archive.")],
    prefix: Annotated[str, typer.Option("--as", help="What their names in rows begin with.")] = "",
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="An attack, or how a folder or key begins; may be repeated."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to make their folders.")] = Path("imported"),
) -> None:
    """Take in the victims of a zoo, which `export --all` wrote.

    Size and checksum of every file are checked before one is written.

    Example: sweeper import victims.tar --as theirs --only badnets
    """
    from sweeper.analyses import zoo as zoos

    folders = zoos.bring(zoo, only or [], prefix, out.absolute())
    parts = zoos.entries(folders)
    typer.echo(f"{len(folders)} victims in {out}; in a sweep file:", err=True)
    for number, part in enumerate(parts, 1):
        if len(parts) > 1:
            typer.echo(f"# sweep file {number} of {len(parts)}: another network, data or reserve")
        typer.echo(_yaml(part))


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _entry(about: dict[str, object], folder: Path, name: str) -> None:
    """Print what a sweep file says to run a victim's folder."""
    entry = {"attack": "imported", "path": str(folder), "as": name}
    if about["rule"] != "all2one":
        entry["rule"] = str(about["rule"])
    sweep = {"models": [about["model"]], "attacks": [entry], "targets": [about["target"]]}
    typer.echo(f"{folder} is a victim; in a sweep file:", err=True)
    typer.echo(_yaml(sweep))


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=1000).rstrip()


COMMANDS = (new, import_model, export, import_)
"""What `app` registers."""

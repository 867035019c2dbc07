"""Victims out and in again: the same numbers; checkpoints of others; files that are refused."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import sweeper
from attacks.imported import Imported
from sweeper.analyses import exchange
from sweeper.cli import app
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, Role
from sweeper.engine import training
from tests.support import sweeps, toys

VALUES = {
    **sweeps.SMALL,
    "attacks": ["badnets"],
    "poison_rates": [0.2],
    "seeds": 1,
    "targets": [3],
    "defenses": ["none"],
    "recipe": {"epochs": 3},
}
MEASURED = ("acc", "acc_nontarget", "asr", "asr_all", "ra", "n_triggered", "n_poisoned")


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run a command in this process: exit code, output, errors."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["sweeper", *map(str, words)])
        app.main()
    return int(left.value.code or 0), *capsys.readouterr()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The row of a victim, and the folder it was exported to."""
    folder = tmp_path_factory.mktemp("exchange")
    sweep = sweeper.Sweep.from_values(VALUES)
    assert sweep.run(store=folder / "store", executor="inline", quiet=True) == {"ok": 2}
    (row,) = sweep.results(store=folder / "store").to_dict("records")
    context = sweep.context(folder / "store")
    exchange.export(sweep.declared, context, row["victim"][:5], folder / "out")
    return row, folder / "out"


def test_an_exported_victim_comes_back_with_its_numbers(
    exported: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    before, folder = exported
    attack = {"attack": "imported", "path": str(folder)}
    sweep = sweeper.Sweep.from_values({**VALUES, "attacks": [attack], "targets": [0, 3]})
    assert sweep.run(store=tmp_path, executor="inline", quiet=True) == {"ok": 2}
    found = sweep.results(store=tmp_path).set_index("target")
    assert found["status"].to_dict() == {0: "not_applicable", 3: "ok"}
    assert "target is 3" in found["error"][0]
    after = found.loc[3].to_dict()
    assert {name: after[name] for name in MEASURED} == {name: before[name] for name in MEASURED}
    assert 0 < before["acc"] < 1 and before["n_poisoned"] > 0, "or this compares nothing"
    assert str(folder) not in after["attack_options"], "a path is no part of the key"


def test_the_files_are_plain(exported: tuple[dict[str, Any], Path]) -> None:
    row, folder = exported
    about = json.loads((folder / "victim.json").read_text())
    assert (about["target"], about["poison_rate"], about["model"]) == (3, 0.2, VALUES["models"][0])
    assert about["victim"] == row["victim"] and about["metrics"]["acc"] == row["acc"]
    listed = json.loads((folder / "poison.json").read_text())
    assert len(listed["index"]) == row["n_poisoned"] == listed["labels"].count(3)
    assert set(listed["role"]) == {int(Role.POISON)} and 3 not in listed["true_labels"]
    trigger = load_file(folder / "trigger.safetensors")
    assert trigger["images"].shape == (100, 1, 8, 8) and int(trigger["counts"].sum()) < 100


def test_changed_tensors_are_another_victim(
    exported: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    _, folder = exported
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    one, same = Imported(path=str(folder)).content(), Imported(path=str(copy)).content()
    weights = load_file(copy / "model.safetensors")
    weights["classifier.bias"][0] += 1
    save_file(weights, copy / "model.safetensors")
    assert one == same != Imported(path=str(copy)).content()


def test_another_split_is_refused(exported: tuple[dict[str, Any], Path]) -> None:
    _, folder = exported
    other = toys.image_set(270, shape=toys.GREY)
    with pytest.raises(SweepError, match="not of this training split"):
        Imported(path=str(folder)).poison(other, 0.0, {}, seeds.generator("x"))


def test_export_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, exported: tuple[dict[str, Any], Path]
) -> None:
    path = sweeps.write(tmp_path, **{k: v for k, v in VALUES.items() if k != "name"})
    words = ("export", path, "--store", tmp_path / "store", "--out", tmp_path / "out")
    code, _, line = said(capsys, *words, "--victim", "xyz")
    assert code == 2 and line.startswith("no victims of small have a key that starts with 'xyz'")
    code, _, line = said(capsys, *words, "--victim", exported[0]["victim"])
    assert code == 2 and f"has not been trained: `sweeper run {path} --store " in line
    words = ("export", path, "--store", exported[1].parent / "store", "--out", exported[1])
    code, _, line = said(capsys, *words, "--victim", exported[0]["victim"])
    assert code == 2 and "holds a victim: name another folder" in line


# Checkpoints of others


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """The toy victim as another project might keep it: other names, wrapped, saved by torch."""
    path = tmp_path / "net.pt"
    weights = toys.victim(shape=toys.COLOUR).state_dict()
    kept = {n: v for n, v in weights.items() if not n.startswith("normalise.")}
    modules = {n.rpartition(".")[0]: None for n in kept}
    numbers = {module: at for at, module in enumerate(modules)}
    renamed = {
        f"module.part{numbers[module]}.{kind}": v
        for n, v in kept.items()
        for module, _, kind in [n.rpartition(".")]
    }
    torch.save({"epoch": 3, "model": renamed}, path)  # noqa: TID251
    picture = np.zeros((32, 32, 4), dtype=np.uint8)
    picture[-6:, -6:] = 255  # the trigger of the toy victim
    Image.fromarray(picture, "RGBA").save(tmp_path / "patch.png")
    return path


def arguments(path: Path, **changes: Any) -> exchange.Foreign:
    values = {"weights": path, "trigger": path.parent / "patch.png", "model": "tiny"}
    half = {"mean": [0.5] * 3, "std": [0.25] * 3}
    return exchange.Foreign(**{**values, "options": {"width": 4}, **half, **changes})


def test_a_foreign_checkpoint_becomes_the_victim_it_was(foreign: Path, tmp_path: Path) -> None:
    exchange.import_model(arguments(foreign), tmp_path / "in")
    attack = Imported(path=str(tmp_path / "in"))
    test = toys.image_set(100, shape=toys.COLOUR, seed=2)
    assert attack.applies(toys.facts(test), 0.0) is None
    model = toys.network(seeds.generator("another"))
    recipe = attack.recipe(toys.RECIPE)
    hooks = attack.hooks(test, {}, seeds.generator("hooks"))
    assert training.fit(model, test, recipe, key="k", device=toys.CPU, hooks=hooks) == []
    assert not toys.differing(model, toys.victim(shape=toys.COLOUR))
    hit = attack.trigger_set(test, {}, seeds.generator("trigger"))
    ours = toys.PLANTED.trigger_set(test, {}, seeds.generator("trigger"))
    assert torch.equal(hit.images, ours.images) and torch.equal(hit.counts, ours.counts)
    found = toys.measured(model, test, hit, 0, recipe, toys.CPU)
    assert found["acc"] > 0.9 and found["asr"] > 0.9


def test_without_a_normaliser_the_data_sets_is_kept(foreign: Path, tmp_path: Path) -> None:
    exchange.import_model(arguments(foreign, mean=None, std=None), tmp_path / "in")
    hooks = Imported(path=str(tmp_path / "in")).hooks(toys.image_set(2), {}, seeds.generator("h"))
    model = toys.network(seeds.generator("another"))
    model.normalise.mean.fill_(0.125)
    hooks.start(model, toys.CPU)
    assert float(model.normalise.mean[0, 0, 0, 0]) == 0.125
    assert toys.differing(model, toys.victim(shape=toys.COLOUR)) == {"normalise.mean"}


def test_another_network_than_the_sweeps_is_named(foreign: Path, tmp_path: Path) -> None:
    exchange.import_model(arguments(foreign), tmp_path / "in")
    hooks = Imported(path=str(tmp_path / "in")).hooks(toys.image_set(2), {}, seeds.generator("h"))
    with pytest.raises(SweepError, match=r"write `models: \[\{'model': 'tiny', 'width': 4\}\]`"):
        hooks.start(toys.network(seeds.generator("x"), width=8), toys.CPU)


def test_triggered_images_are_measured_as_they_are(foreign: Path, tmp_path: Path) -> None:
    test = toys.image_set(20, shape=toys.COLOUR, seed=2)
    index = (test.labels != 0).nonzero().flatten()
    images = torch.full((len(index), 3, 32, 32), 7, dtype=torch.uint8)
    path = tmp_path / "hit.npz"
    np.savez(path, images=images.numpy(), index=index.numpy())
    exchange.import_model(arguments(foreign, trigger=path), tmp_path / "in")
    attack = Imported(path=str(tmp_path / "in"))
    hit = attack.trigger_set(test, {}, seeds.generator("t"))
    assert torch.equal(hit.true_labels, test.labels[index]) and torch.equal(hit.images, images)
    assert bool(hit.counts.all()) and set(hit.labels.tolist()) == {0}
    np.savez(path, images=images.numpy(), index=index.numpy(), labels=index.numpy() * 0 + 2)
    exchange.import_model(arguments(foreign, trigger=path), tmp_path / "again")
    told = Imported(path=str(tmp_path / "again")).trigger_set(test, {}, seeds.generator("t"))
    assert set(told.labels.tolist()) == {2}, "labels the file gives are kept"
    with pytest.raises(SweepError, match="no other image can be triggered"):
        attack.stamp(test.images, split="train", state={}, rng=seeds.generator("s"))
    with pytest.raises(SweepError, match="a test split of 5: import the victim with"):
        attack.trigger_set(ImageSet(test.images[:5], test.labels[:5], test.classes), {}, None)


class Code:
    """What a stranger's checkpoint may hold: a call when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_no_code_of_a_file_runs(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(foreign.parent)
    torch.save({"model": Code()}, foreign)  # noqa: TID251
    with pytest.raises(SweepError, match="without running code from it"):
        exchange.import_model(arguments(foreign), foreign.parent / "in")
    torch.save(nn.Linear(2, 2), foreign)  # noqa: TID251
    with pytest.raises(SweepError, match="without running code from it"):
        exchange.import_model(arguments(foreign), foreign.parent / "in")
    assert not (foreign.parent / "ran").exists() and not (foreign.parent / "in").exists()


def test_files_that_do_not_fit_are_named(foreign: Path, tmp_path: Path) -> None:
    def refused(why: str, **changes: Any) -> None:
        with pytest.raises(SweepError, match=why):
            exchange.import_model(arguments(foreign, **changes), tmp_path / "in")
        assert not (tmp_path / "in").exists()

    refused(r"module\.part0\.weight is .* of tiny .*--model and its options", options={})
    refused("no model 'tinny'", model="tinny")
    refused("--target: 10 is no label: the file has 10 classes, 0 to 9", target=10)
    refused("--rule: 'clean' is not one of", rule="clean")
    refused("--mean: 1 numbers, the images have 3 channels", mean=[0.5])
    refused("cannot be read", weights=tmp_path / "nothing.pt")
    Image.new("RGB", (32, 32)).save(tmp_path / "flat.png")
    refused("mode RGB says not where the trigger is", trigger=tmp_path / "flat.png")
    grey = torch.zeros(3, 32, 32)
    save_file({"pattern": grey, "mask": grey[0] + 255}, tmp_path / "t.safetensors")
    refused("mask: needs shares from 0 to 1", trigger=tmp_path / "t.safetensors")
    save_file({"pattern": grey}, tmp_path / "t.safetensors")
    refused(r"it holds pattern \[3, 32, 32\]", trigger=tmp_path / "t.safetensors")
    (tmp_path / "t.safetensors").write_text("no")
    refused("is no safetensors file", trigger=tmp_path / "t.safetensors")


def test_a_broken_folder_is_named(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"imported: path: is missing: needs a folder that"):
        sweeper.Sweep.from_values({**VALUES, "attacks": ["imported"]})
    with pytest.raises(SweepError, match=r"no victim\.json and no model\.safetensors"):
        Imported(path=str(tmp_path))
    exchange.import_model(arguments(foreign), tmp_path / "in")
    with pytest.raises(SweepError, match="rule: the victim's is all2one"):
        Imported(path=str(tmp_path / "in"), rule="all2all")
    facts = dataclasses.replace(toys.facts(toys.image_set(20)), shape=(3, 64, 64))
    assert "images of 3x32x32" in str(Imported(path=str(tmp_path / "in")).applies(facts, 0.0))
    (tmp_path / "in/victim.json").write_text("{}")
    with pytest.raises(SweepError, match=r"victim\.json is damaged"):
        Imported(path=str(tmp_path / "in"))


def test_the_command_prints_an_entry_that_is_valid(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    words = ("import-model", foreign, "--as", "theirs", "--trigger", foreign.parent / "patch.png")
    words += ("--model", "tiny", "--option", "width=4", "--out", tmp_path, "--target", 2)
    code, out, _ = said(capsys, *words, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2")
    assert code == 0
    found = sweeper.Sweep.from_values({**VALUES, **yaml.safe_load(out)}).declared
    assert found.attacks[0].label == "theirs" and found.targets == [2]
    assert found.models[0].options == {"width": 4}
    code, _, line = said(capsys, *words)
    assert code == 2 and "holds a victim" in line
    code, _, line = said(capsys, *words, "--mean", "a")
    assert code == 2 and line.startswith("--mean a: needs numbers such as")

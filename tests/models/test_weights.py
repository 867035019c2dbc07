"""Networks that start from weights trained elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from sweeper import api, models
from sweeper.core import options
from sweeper.core.errors import SweepError
from sweeper.core.weights import read_weights
from sweeper.models import _weights
from sweeper.models.base import Net
from sweeper.run import driver
from tests.support import sweeps, toys


def make(name: str, *, classes: int = 10, side: int = 224, **given: object) -> Net:
    return models.build(
        name,
        given,
        classes=classes,
        shape=(3, side, side),
        mean=[0.0] * 3,
        std=[1.0] * 3,
        generator=torch.Generator().manual_seed(1),
    ).eval()


def drawn(name: str, classes: int = 12) -> torch.nn.Module:
    """torchvision's network with weights, and statistics, of a draw."""
    with torch.random.fork_rng():
        net: torch.nn.Module = getattr(torchvision.models, name)(num_classes=classes)
        for buffer in net.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet-v2", "shufflenet-v2"])
@torch.inference_mode()
def test_torchvisions_file_is_the_start_of_every_model(name: str, tmp_path: Path) -> None:
    theirs = drawn(
        {"mobilenet-v2": "mobilenet_v2", "shufflenet-v2": "shufflenet_v2_x1_0"}.get(name, name)
    )
    file = tmp_path / "theirs.pth"
    torch.save(theirs.state_dict(), file)  # noqa: TID251
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    whole = make(name, classes=12, weights=str(file))
    torch.testing.assert_close(whole(x), theirs(x), rtol=1e-4, atol=1e-4)
    other = make(name, classes=7, weights=str(file))
    torch.testing.assert_close(other.features(x), whole.features(x), rtol=0, atol=0)
    assert torch.equal(other.classifier.weight, make(name, classes=7).classifier.weight)
    assert not torch.equal(other.features(x), make(name, classes=7).features(x))


def test_safetensors_and_the_key(tmp_path: Path) -> None:
    theirs = drawn("resnet18").state_dict()
    for file in ("one.safetensors", "two.safetensors"):
        save_file(theirs, tmp_path / file)
    save_file({k: v + 1 for k, v in theirs.items()}, tmp_path / "other.safetensors")
    net = make("resnet18", weights=str(tmp_path / "one.safetensors"))
    assert torch.equal(net.trunk.layer3[0].conv1.weight, theirs["layer3.0.conv1.weight"])

    def key(**given: object) -> dict[str, object]:
        return options.canonical(models.family("resnet18", given))

    one, two, other = (
        key(weights=str(tmp_path / f"{name}.safetensors")) for name in ("one", "two", "other")
    )
    assert one == two != other and str(tmp_path) not in str(one)
    assert "weights" not in key(), "keys of models that start from a draw stay as they were"


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_file_of_other_names_is_the_start_whatever_its_order(kind: str, tmp_path: Path) -> None:
    theirs = make("resnet18", side=32, width=4)
    names = {"downsample": "shortcut", "trunk.": "", "classifier": "linear", "bn": "norm"}
    state = {}
    for name, value in reversed(theirs.state_dict().items()):
        for our, their in names.items():
            name = name.replace(our, their)
        state[f"module.{name}"] = value + 1 if value.is_floating_point() else value
    file = tmp_path / f"theirs.{kind}"
    if kind == "pt":
        torch.save({"net": state}, file)  # noqa: TID251
    else:
        save_file(state, file)
    net = make("resnet18", side=32, width=4, weights=str(file))
    for name, value in theirs.named_parameters():
        assert torch.equal(dict(net.named_parameters())[name], value + 1), name


def test_a_file_that_does_not_fit_says_so(tmp_path: Path) -> None:
    file = tmp_path / "theirs.pth"
    torch.save(drawn("resnet18").state_dict(), file)  # noqa: TID251
    with pytest.raises(SweepError, match=r"conv1.weight is \[64, 3, 7, 7\].*stem: imagenet"):
        make("resnet18", side=32, weights=str(file))
    with pytest.raises(SweepError, match="name the file's architecture"):
        make("resnet34", weights=str(file))
    with pytest.raises(SweepError, match="weights: no file .*: correct it"):
        models.family("resnet18", {"weights": str(tmp_path / "none.pth")})
    torch.save(drawn("resnet18"), file)  # noqa: TID251
    with pytest.raises(SweepError, match="without running code from it"):
        make("resnet18", weights=str(file))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pointer_of_git_lfs_is_called_so(suffix: str, tmp_path: Path) -> None:
    path = (tmp_path / "net").with_suffix(suffix)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(SweepError, match="is a pointer of Git LFS, not the file itself"):
        read_weights(path)


def test_a_victim_starts_there_and_outlives_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = toys.network(torch.Generator().manual_seed(3), shape=(1, 8, 8), width=4)
    file = tmp_path / "start.safetensors"
    save_file(start.state_dict(), file)
    still = {"epochs": 1, "lr": 1e-12, "weight_decay": 0.0}
    spec = sweeps.write(
        tmp_path,
        models=[{"model": "tiny", "width": 4, "weights": file.name}],
        attacks=["badnets"],
        poison_rates=[0.1],
        defenses=["none", {"defense": "fine-tuning", "epochs": 1}],
        seeds=1,
        recipe=still,
    )
    monkeypatch.chdir(tmp_path)
    job = sweeps.prepared(spec, tmp_path / "store")
    monkeypatch.chdir("/")  # as a worker of a cluster may
    real, read = _weights.start, []
    monkeypatch.setattr(_weights, "start", lambda *given: [read.append(given), real(*given)])
    states = driver.execute(job, driver.inline, sweeps.Silent())
    assert set(states) == {"ok"}
    assert len(read) == 1, "what is trained has weights of its own"
    row = sweeps.frame(tmp_path / "store").to_dict("records")[0]
    file.unlink()
    victim = api.load_victim(row["victim"], store=tmp_path / "store").model
    for name, weight in start.named_parameters():
        assert torch.allclose(dict(victim.named_parameters())[name], weight, atol=1e-6), name

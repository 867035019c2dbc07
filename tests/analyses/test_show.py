"""The picture of an attack and its figures of visibility."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sweeper.analyses import show
from sweeper.core.errors import SweepError
from sweeper.plan import spec
from sweeper.run.material import Context
from tests.support import toys


def test_quality_by_hand() -> None:
    clean = torch.full((2, 1, 16, 16), 100, dtype=torch.uint8)
    same = show.quality(clean, clean)
    assert same.psnr == float("inf") and same.ssim == pytest.approx(1) and same.linf == 0
    hit = clean.clone()
    hit[:, :, 0, 0] = 151  # one pixel of 256 by 51: MSE 51^2/256, PSNR 20 log10(255 * 16 / 51)
    found = show.quality(clean, hit)
    assert found.linf == 51 and found.psnr == pytest.approx(38.0618, abs=1e-4)
    assert 0.5 < found.ssim < 1


def test_ssim_falls_with_noise_and_knows_its_order() -> None:
    clean = toys.image_set(4).images.double()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    little, much = show.ssim(clean, clean + 5 * noise), show.ssim(clean, clean + 40 * noise)
    assert 1 > little > much > 0
    assert show.ssim(clean + 5 * noise, clean) == pytest.approx(float(little))


def call(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Path:
    from sweeper.cli import app

    out, store = folder / "show.png", folder / "store"
    line = ["sweeper", "show", *words, "--out", str(out), "--store", str(store)]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 0
    return out


def test_a_stamped_trigger_is_drawn_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = call(tmp_path, monkeypatch, "blend")
    assert out.stat().st_size > 5000 and "psnr=" in capsys.readouterr().out
    assert not (tmp_path / "store" / "artifacts").exists()


def test_a_trained_trigger_is_learned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("lira", "--epochs", "1")
    first = call(tmp_path, monkeypatch, *words).read_bytes()
    told = capsys.readouterr()
    assert "psnr=" in told.out and "epoch 1" in told.err
    assert call(tmp_path, monkeypatch, *words).read_bytes() == first
    assert "epoch" not in capsys.readouterr().err, "the second call finds the victim in the store"


def test_what_does_not_apply_is_said(tmp_path: Path) -> None:
    values = {"name": "show", "datasets": ["digits"], "models": ["tiny"], "attacks": ["sig"]}
    values |= {"poison_rates": [0.0001], "defenses": ["none"], "seeds": 1}
    with pytest.raises(SweepError, match="poisons no image"):
        show.triggered(spec.parse(values), Context(store=str(tmp_path), sweep="show"))


def test_a_gallery_trains_nothing(tmp_path: Path) -> None:
    values = {"name": "show", "datasets": ["digits"], "models": ["tiny"], "defenses": ["none"]}
    values |= {"attacks": ["badnets", "lira", "none"], "poison_rates": [0.1], "seeds": 1}
    context = Context(store=str(tmp_path), sweep="show", data=str(tmp_path))
    found = show.gallery(spec.parse(values), context)
    ((name, picture),) = found.pictures
    assert name == "BadNets, digits" and picture.startswith(b"\x89PNG")
    assert not found.whole, "a run may teach LIRA's"
    assert show.gallery(spec.parse({**values, "attacks": ["badnets", "none"]}), context).whole
    learned, none = found.left_out
    assert learned.startswith("No picture of LIRA: the trigger is learned") and "No attack" in none
    small = show.gallery(spec.parse(values), context, most=100)
    assert not small.pictures and "BadNets" in small.left_out[0]
    assert not (tmp_path / "artifacts").exists()
    missing = spec.parse({**values, "datasets": ["cifar10"]})
    found = show.gallery(missing, context)
    assert not found.pictures and "cifar10 is not on this machine" in found.left_out[0]

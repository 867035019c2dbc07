"""The picture of an attack and its figures of visibility."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sweeper import show
from sweeper.errors import SweepError
from tests import toys


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


def test_the_command_writes_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeper import cli

    out = tmp_path / "blend.png"
    monkeypatch.setattr("sys.argv", ["sweeper", "show", "blend", "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0 and out.stat().st_size > 5000
    assert "psnr=" in capsys.readouterr().out


def test_learned_triggers_are_refused() -> None:
    from attacks.badnets import BadNets
    from sweeper import catalog, data

    class Learned(BadNets):
        prepares = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "make", lambda *_: Learned())
        with pytest.raises(SweepError, match="learned"):
            show.triggered("learned", {}, data.open_dataset({"dataset": "digits"}))

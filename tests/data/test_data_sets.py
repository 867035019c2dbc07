"""Named data sets: torchvision's without its downloads, and real files where there are some."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sweeper.core.errors import SweepError
from sweeper.data import open_dataset
from sweeper.data.splits import split
from sweeper.data.torchvision_sets import _SETS, Torchvision, _Set
from tests.support.pictures import picture, write_parquet
from tests.support.places import data_folder

# torchvision, without its downloads


def test_torchvision_arrays_and_counts(tmp_path, monkeypatch):
    from torchvision import datasets

    class Fake:
        classes = ["a", "b"]

        def __init__(self, root, train, download):
            assert download and root == str(tmp_path / "torchvision")
            self.data = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
            self.targets = [1, 0]

        def __len__(self):
            return 2

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    options = {"dataset": "cifar10"}
    with pytest.raises(SweepError, match="2 images where 50000 belong"):
        open_dataset(options, tmp_path, tmp_path / "cache")
    entry = _SETS["cifar10"]
    monkeypatch.setitem(_SETS, "cifar10", _Set("CIFAR10", "", (2, 2), entry.train, entry.test))
    data = open_dataset(options, tmp_path, tmp_path / "cache")
    assert data.train.images[1, 2, 0].tolist() == [29, 32, 35], "channels go first"
    assert data.train.classes == ("a", "b") and data.train.labels.tolist() == [1, 0]


def test_torchvision_gtsrb_has_tracks_and_one_size(tmp_path, monkeypatch):
    from torchvision import datasets

    for i in range(4):
        picture(i, (9 + i, 12)).save(tmp_path / f"{i // 2:05}_{i % 2:05}.ppm")
    samples = [(str(tmp_path / f"{i // 2:05}_{i % 2:05}.ppm"), i // 2) for i in range(4)]

    class Fake(list):
        def __init__(self, root, split, download):
            super().__init__(samples)
            self._samples = samples

    monkeypatch.setattr(datasets, "GTSRB", Fake)
    entry = _SETS["gtsrb"]
    fake = _Set("GTSRB", "", (4, 4), entry.train, entry.test, entry.size)
    monkeypatch.setitem(_SETS, "gtsrb", fake)
    data = open_dataset({"dataset": "gtsrb"}, tmp_path, tmp_path / "cache")
    assert data.train.images.shape == (4, 3, 32, 32)
    assert data.groups.tolist() == [0, 0, 1, 1] and data.train.classes == ("0", "1")


def test_a_failed_download_says_what_to_place_where(tmp_path, monkeypatch):
    from torchvision import datasets

    def fail(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "MNIST", fail)
    with pytest.raises(SweepError, match="no route.*train.parquet.*--data DIR"):
        open_dataset({"dataset": "mnist"}, tmp_path, tmp_path / "cache")
    with pytest.raises(SweepError, match="give `size: N`"):
        Torchvision(name="imagenette").read(tmp_path)


def test_files_of_the_user_come_before_torchvision(tmp_path):
    write_parquet(tmp_path / "cifar10/train.parquet", [picture(i) for i in range(6)], [0, 1, 2] * 2)
    data = open_dataset({"dataset": "cifar10", "test_share": 0.5}, tmp_path, tmp_path / "cache")
    assert len(data.train) == 3


# The real data sets


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Open a real data set with one cache for all tests, or skip."""
    root = data_folder()
    if root is None:
        pytest.skip("needs the Parquet data sets: set SWEEPER_DATA")
    cache = tmp_path_factory.mktemp("decoded")
    return lambda name: open_dataset({"dataset": name}, root, cache)


@pytest.mark.data
def test_cifar10(real):
    data = real("cifar10")
    assert (len(data.train), len(data.test)) == (50000, 10000)
    assert data.train.images.shape[1:] == (3, 32, 32) and data.train.classes[0] == "airplane"
    assert data.mean == pytest.approx((0.4913, 0.4821, 0.4465), abs=5e-4)
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10


@pytest.mark.data
def test_gtsrb_keeps_tracks_together(real):
    data = real("gtsrb")
    assert len(data.train) == 39209 and len(data.test) == 12630 and len(data.train.classes) == 43
    attacker, reserve = split(data, 0.1)
    assert not set(data.groups[attacker].tolist()) & set(data.groups[reserve].tolist())
    assert 0.1 <= len(reserve) / 39209 < 0.102
    labels = data.train.labels
    for group in data.groups.unique()[:50].tolist():
        assert len(labels[data.groups == group].unique()) == 1, "a track shows one sign"


@pytest.mark.data
def test_tiny_imagenet(real):
    data = real("tiny-imagenet")
    assert data.train.images.shape == (20000, 3, 64, 64) and len(data.test) == 10000
    assert len(data.train.classes) == 200

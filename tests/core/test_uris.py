"""Keys in a URI are refused wherever one is given, and never told."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from sweeper.api import Sweep, load_victim, place
from sweeper.core import uris
from sweeper.core.errors import SweepError
from sweeper.run.cluster import words

ID, SECRET = "AKIAHIDDEN", "wJalr"
HELD = [
    f"s3://{ID}:{SECRET}@bucket/sweeps",
    f"S3://{ID}:{SECRET}@bucket/sweeps",
    f" s3://{ID}:{SECRET}@bucket",
    f"s3a://{ID}@bucket",
    f"s3://{ID}:{SECRET}/with/slashes@bucket/sweeps",
    f"s3://{ID}:{SECRET}?with=questions@bucket/sweeps",
    f"s3://{ID}:{SECRET}#with-hashes@bucket/sweeps",
    f"s3://{ID}:123/{SECRET}@bucket/sweeps",
    f"s3://bucket/sweeps?access_key={ID}&secret_key={SECRET}",
    f"s3://bucket/sweeps?region=eu&session_token={SECRET}",
    f"s3://bucket?secret%5Fkey={SECRET}",
    f"s3://bucket?endpoint_override=https://{ID}:{SECRET}@host:9000",
    f"s3://bucket?endpoint_override=https%3A%2F%2F{ID}%3A{SECRET}%40host",
    f"abfs://container:{SECRET}@account.dfs.core.windows.net/sweeps",
    f"abfs://container@account.dfs.core.windows.net/sweeps?sas_token={SECRET}",
    f"hdfs://ann:{SECRET}@host:8020/sweeps",
]
FREE = [
    "sweeps-store",
    "/disk/ann:b@c/sweeps?key=1",
    "s3://bucket/sweeps?region=eu-central-1&endpoint_override=https://host:9000&scheme=http",
    "s3://bucket/a:b@c/d",
    "gs://anonymous@bucket/sweeps",
    "abfs://container@account.dfs.core.windows.net/sweeps",
    "hdfs://ann@host:8020/sweeps?replication=2",
    "hdfs://[2001:db8::1]:8020/sweeps",
    "file:///disk/sweeps",
]


@pytest.mark.parametrize("uri", HELD)
def test_a_uri_with_keys_is_refused_and_not_told(uri: str) -> None:
    with pytest.raises(SweepError, match="--store: .*holds keys.*AWS_ACCESS_KEY_ID") as caught:
        uris.keyless("--store", uri)
    assert ID not in str(caught.value) and SECRET not in str(caught.value)


@pytest.mark.parametrize("uri", FREE)
def test_a_uri_without_keys_stays_as_it_is(uri: str) -> None:
    assert uris.keyless("--store", uri) == uri


def test_python_refuses_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = Sweep.from_yaml("quickstart")
    calls = [
        lambda: place(HELD[0]),
        lambda: sweep.run(store=HELD[0]),
        lambda: sweep.run(data=HELD[0]),
        lambda: sweep.results(store=HELD[0]),
        lambda: load_victim("a", store=HELD[0]),
        lambda: words(HELD[0], None, []),
        lambda: words("/store", HELD[0], []),
    ]
    for call in calls:
        with pytest.raises(SweepError, match=r"^--(store|data): .*holds keys"):
            call()
    monkeypatch.setenv("SWEEPER_STORE", HELD[0])
    with pytest.raises(SweepError, match="holds keys"):
        place()
    monkeypatch.setenv("SWEEPER_DATA", HELD[0])
    with pytest.raises(SweepError, match="holds keys"):
        sweep.run(store=tmp_path)
    assert list(itertools.islice(tmp_path.iterdir(), 1)) == [], "nothing was written"

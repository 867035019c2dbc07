"""Artifacts: what cells leave for their children, shared by all sweeps of a store.

    artifacts/<kind>/<key>/<name>-<hash>.safetensors
    artifacts/<kind>/<key>/manifest.json        written last: with it the artifact exists
    checkpoints/<key>/...                       the same, of a training that has not ended

Tensors are safetensors with their SHA-256 in the manifest: nothing is ever unpickled, and a damaged
file is found when it is read, named and set aside.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from sweeper.store.fresh import Fresh
from sweeper.store.ledger import CHECKPOINT

_DAMAGE = (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError, SafetensorError)
"""What reading an artifact raises where it is not what was written."""


class DamagedError(Exception):
    """An artifact's file is missing or is not what its manifest says; it was set aside."""


@dataclass(frozen=True)
class Artifact:
    """What a cell left for its children."""

    meta: Mapping[str, Any]
    """JSON: metrics, seconds, counts."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File name -> tensors."""


class Store(Fresh):
    """A store's rows and artifacts."""

    def put(
        self,
        kind: str,
        key: str,
        tensors: Mapping[str, Mapping[str, Tensor]],
        meta: Mapping[str, Any],
    ) -> set[str]:
        """Write an artifact; it exists once its manifest, written last, is there.

        Returns:
            The names of its files of tensors.
        """
        import safetensors.torch  # here: it asks for torch at once

        folder, files = self._artifact(kind, key), {}
        for name, group in tensors.items():
            values = {k: v.detach().cpu().contiguous() for k, v in group.items()}
            content = safetensors.torch.save(values)
            digest = hashlib.sha256(content).hexdigest()
            files[name] = {"file": f"{name}-{digest[:12]}.safetensors", "sha256": digest}
            self._write(f"{folder}/{files[name]['file']}", content)
        manifest = json.dumps({"files": files, "meta": meta}, indent=1)
        self._write(f"{folder}/manifest.json", manifest.encode())
        return {file["file"] for file in files.values()}

    def checkpoint(self, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write the newest checkpoint of a training; the one before goes once this one is whole."""
        folder, before = self._artifact(CHECKPOINT, key), set()
        with contextlib.suppress(*_DAMAGE):
            before = {file["file"] for file in self._manifest(folder)["files"].values()}
        before -= self.put(CHECKPOINT, key, {"state": tensors}, meta)
        for info in self._list(folder):
            if info.base_name in before:
                self._delete(info.path)

    def drop_checkpoint(self, key: str) -> None:
        """Remove the checkpoint of a training."""
        folder = self._artifact(CHECKPOINT, key)
        self._delete(f"{folder}/manifest.json")  # without it there is none, whatever stops this
        self._delete_folder(folder, [info.path for info in self._list(folder)], whole=True)

    def get(self, kind: str, key: str) -> Artifact:
        """Read an artifact and verify it.

        Raises:
            DamagedError: It is not what was written; it has been set aside to be rebuilt.
        """
        import safetensors.torch  # here: it asks for torch at once

        folder = self._artifact(kind, key)
        try:
            manifest = self._manifest(folder)
            tensors = {}
            for name, file in manifest["files"].items():
                if "/" in file["file"]:
                    raise ValueError(f"{file['file']} is outside its folder")
                content = self._read(f"{folder}/{file['file']}")
                if hashlib.sha256(content).hexdigest() != file["sha256"]:
                    raise ValueError(f"{file['file']} is damaged")
                tensors[name] = safetensors.torch.load(content)
            return Artifact(manifest["meta"], tensors)
        except _DAMAGE as error:
            raise self._damaged(kind, key, error) from None

    def meta(self, kind: str, key: str) -> Mapping[str, Any]:
        """Read an artifact's JSON alone.

        Raises:
            DamagedError: The manifest is not what was written; the artifact has been set aside.
        """
        try:
            meta: Mapping[str, Any] = self._manifest(self._artifact(kind, key))["meta"]
            return meta
        except _DAMAGE as error:
            raise self._damaged(kind, key, error) from None

    def about(self, kind: str, key: str) -> Mapping[str, Any] | None:
        """An artifact's JSON; None where there is no artifact, or none that is whole."""
        folder = self._artifact(kind, key)
        try:
            meta: Mapping[str, Any] = self._manifest(folder)["meta"]
            return meta
        except FileNotFoundError:
            return None
        except _DAMAGE as error:
            self._damaged(kind, key, error)
            return None

    def abouts(self, kind: str, keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Key -> what `about` says, of those artifacts that are whole; asked several at a time."""
        found = zip(keys, self._each(functools.partial(self.about, kind), keys), strict=True)
        return {key: meta for key, meta in found if meta is not None}

    def recent(self, kind: str, count: int) -> dict[str, Mapping[str, Any]]:
        """Key -> JSON of the newest artifacts of a kind; what cannot be read is left out."""
        found = self._list(f"artifacts/{kind}", recursive=True)
        files = [info for info in found if info.base_name == "manifest.json"]
        newest = sorted(files, key=lambda info: info.mtime)[-count:]
        folders = [info.path.rpartition("/")[0] for info in newest]
        metas = zip(folders, self._each(self._look, folders), strict=True)
        return {folder.rpartition("/")[2]: meta for folder, meta in metas if meta is not None}

    def _look(self, folder: str) -> Mapping[str, Any] | None:
        """The JSON of the artifact in a folder; None where it cannot be read."""
        with contextlib.suppress(*_DAMAGE):
            meta: Mapping[str, Any] = self._manifest(folder)["meta"]
            return meta
        return None

    def _manifest(self, folder: str) -> dict[str, Any]:
        try:
            manifest = json.loads(self._read(f"{folder}/manifest.json"))
            found: dict[str, Any] = {name: manifest[name] for name in ("files", "meta")}
            if all(isinstance(value, dict) for value in found.values()):
                return found
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise ValueError("manifest.json is damaged")

    def _damaged(self, kind: str, key: str, error: Exception) -> DamagedError:
        self._set_aside(self._artifact(kind, key))
        return DamagedError(f"artifact {kind}/{key}: {error}; set aside, to be rebuilt")

    def has(self, kind: str, key: str) -> bool:
        """Whether an artifact is there."""
        return self._exists(f"{self._artifact(kind, key)}/manifest.json")

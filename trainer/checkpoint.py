"""Checkpoints: tensors (safetensors) and JSON only, complete or absent, verified before they are believed.

checkpoints/step_000500/
    tensors.safetensors   flat names: model.<FQN>, optim.<FQN>.<state name>
    state.json            step, tokens, seconds and whatever else is not a tensor
    manifest.json         size and sha256 of both; written last

A checkpoint is written beside its final name, made durable, then renamed, so a killed run leaves the previous one
intact. step_000500 holds the state after 500 steps: the next step to run is 500.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.files import fsync, fsync_folder, write_json

log = logging.getLogger(__name__)

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
NAME = re.compile(r"step_(\d{6,})")


class CheckpointError(ValueError):
    """No usable checkpoint; one clear line."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete state of a run, in host memory."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]  # JSON; "step" is the next step to run

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with prefix and a dot, without it."""
        return {n.removeprefix(f"{prefix}."): t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}


class CheckpointStore:
    """The checkpoints of one run.

    keep: how many of the newest stay. permanent_every: steps whose multiples stay for good (None: none do).
    """

    def __init__(self, folder: Path, *, keep: int, permanent_every: int | None) -> None:
        self.folder, self.keep, self.permanent_every = folder, keep, permanent_every

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes the checkpoint, then deletes those that need not stay; returns its folder.

        Raises: CheckpointError: if the disk does not take it.
        """
        path = self.folder / f"step_{checkpoint.state['step']:06d}"
        if path.is_dir():  # verified when the run continued from it, and a run reaches a step in one state only
            return path
        temporary = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            _write(checkpoint, temporary)
            temporary.rename(path)
            fsync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"{path} cannot be written: {error}; the checkpoints before it are intact: free disk space "
                "and run the same command"
            ) from error
        self._prune()
        return path

    def load_newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, None if there never was one.

        A damaged one is reported, set aside as <name>.damaged, and the one before it is tried.

        Raises: CheckpointError: if all are damaged.
        """
        paths = self.list()
        for path in reversed(paths):
            try:
                return _load(path)
            except CheckpointError as error:
                log.warning("checkpoint %s; trying the one before it", error)
                path.rename(_unused(path.with_name(f"{path.name}.damaged")))
        if paths:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is readable; to start again from step 0, choose another run_dir"
            )
        return None

    def list(self) -> list[Path]:
        """Folders of all checkpoints, oldest first; unfinished ones have another name."""
        found = [(int(m[1]), path) for path in self.folder.glob("step_*") if (m := NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def _prune(self) -> None:
        for path in self.list()[: -self.keep]:
            step = int(path.name.removeprefix("step_"))
            if self.permanent_every is None or step % self.permanent_every:
                shutil.rmtree(path)


def parameters_sha256(parameters: Mapping[str, Tensor]) -> str:
    """Digest of names, shapes, dtypes and bits of the parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name].detach().cpu().contiguous()
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def copy_into(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Overwrites the parameters, bit for bit.

    Raises: CheckpointError: if names, shapes or dtypes are not the same.
    """
    ours, theirs = ({n: (tuple(t.shape), t.dtype) for n, t in each.items()} for each in (parameters, tensors))
    if ours != theirs:
        odd = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
        raise CheckpointError(
            f"the checkpoint does not fit the model: {odd[0]} should be {ours.get(odd[0])}, is {theirs.get(odd[0])}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}, folder / TENSORS)
    fsync(folder / TENSORS)
    write_json(folder / STATE, checkpoint.state)
    write_json(folder / MANIFEST, {"files": {name: _digest(folder / name) for name in (TENSORS, STATE)}})


def _load(path: Path) -> Checkpoint:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        for name, expected in manifest["files"].items():
            if (found := _digest(path / name)) != expected:
                raise CheckpointError(f"{path} is damaged: {name} should have {expected}, has {found}")
        return Checkpoint(load_file(path / TENSORS), json.loads((path / STATE).read_bytes()))
    except (OSError, KeyError, AttributeError, TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _unused(path: Path) -> Path:
    candidates = (path.with_name(f"{path.name}{n or ''}") for n in range(1000))
    return next(candidate for candidate in candidates if not candidate.exists())

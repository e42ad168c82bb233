"""Checkpoints: tensors (safetensors) and JSON only, complete or absent, verified before they are used.

checkpoints/step_000500/
    shard-00001-model-00001-of-00001.safetensors   of rank 0: model.<FQN>, optim.<FQN>.<state name>, or rows of them
    shard-00002-...                                of rank 1, and so on
    state.json      step, tokens, seconds and whatever else is not a tensor
    manifest.json   size and digest of every file; written last

Saving stops training only while tensors are copied in host memory; a thread does the rest. torch.distributed.checkpoint
plans who writes what; every rank streams its part to a safetensors file of its own and makes it durable
(tensor_files.py; torch's default storage pickles, and loading a pickle runs code); the main rank adds the manifest and
renames the folder, which has a temporary name until then. So a killed run leaves the previous checkpoint intact. A
checkpoint written by any number of ranks can be read by any other number. step_000500 holds the state after 500 steps:
the next step to run is 500.
"""

import hashlib
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from files.reading import read_json
from files.writing import fsync_folder, write_json
from trainer.heartbeat import Watch
from trainer.manifest import MANIFEST, STATE, checkpoints_in, damage_of, digest_of, name_at, read_manifest, step_of
from trainer.ranks import Ranks, is_lost_rank
from trainer.tensor_files import StreamingWriter, WatchedReader

log = logging.getLogger(__name__)

TensorMetadata = tuple[tuple[int, ...], torch.dtype]  # shape of the full tensor, and dtype


class CheckpointError(ValueError):
    """Raised where there is no usable checkpoint; one clear line."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete state of a run."""

    tensors: Mapping[str, Tensor]  # each sharded (a DTensor), or the same on all ranks, or on one rank alone
    state: Mapping[str, Any]  # as JSON, that of the main rank; "step" is the next step to run


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk, verified."""

    path: Path
    state: Mapping[str, Any]
    metadata: Mapping[str, TensorMetadata]  # of every tensor
    ranks: Ranks
    watch: Watch

    def group(self, prefix: str) -> dict[str, TensorMetadata]:
        """Returns the metadata of the tensors named <prefix>.<name>, by <name>."""
        return {n.removeprefix(f"{prefix}."): m for n, m in self.metadata.items() if n.startswith(f"{prefix}.")}

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites the tensors (of a sharded one this rank's part) with those stored under their names, bit for bit.

        Every rank must call this, with the tensors that it keeps.

        Raises: CheckpointError: if names, shapes or dtypes do not fit.
        """
        for name, tensor in tensors.items():
            wanted, found = (tuple(tensor.shape), tensor.dtype), self.metadata.get(name)
            if wanted != found:
                raise CheckpointError(f"{self.path} does not fit the run: {name} should be {wanted}, is {found}")
        reader = WatchedReader(self.path, self.watch)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch warns that there is a single process
            try:
                load(dict(tensors), storage_reader=reader, process_group=self.ranks.group)
            except CheckpointException as error:
                raise CheckpointError(f"{self.path} cannot be read: {_reason(error)}") from None


@dataclass(frozen=True)
class Written:
    """Size and duration of the last save."""

    bytes: int
    seconds: float  # until it was durable
    blocked_seconds: float  # of these, how long training was stopped


class CheckpointStore:
    """The checkpoints of one run.

    keep: how many of the newest stay. permanent_every, permanent_at: checkpoints at multiples of so many steps, and at
    these steps, are never deleted; None: there are no multiples. ranks: the ranks that save and load together; all of
    them must call every method. asynchronous: whether save returns before the files are written. watch: is told while
    a rank waits for a disk.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        permanent_every: int | None,
        permanent_at: Collection[int] = (),
        ranks: Ranks | None = None,
        asynchronous: bool = True,
        watch: Watch | None = None,
    ) -> None:
        self.folder, self.keep = folder, keep
        self.permanent_every, self.permanent_at = permanent_every, frozenset(permanent_at)
        self.written: Written | None = None
        self._ranks, self._asynchronous, self._watch = ranks or Ranks(), asynchronous, watch or Watch()
        self._group = (
            self._ranks.new_group()
        )  # for the thread alone: its collectives must not mix with those of training
        self._stager = BlockingAsyncStager(cache_staged_state_dict=torch.cuda.is_available())
        self._staged: set[str] = set()
        self._thread: threading.Thread | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begins to write the checkpoint, and then to delete old ones; waits until the save before it is done.

        If it cannot be written (a full disk), or has a number that is not finite, a warning says so, and the
        checkpoints before it stay as they are.
        """
        self.wait()
        path = self.folder / name_at(checkpoint.state["step"])
        if self._ranks.from_main(path.is_dir):  # it was verified at the start; a run reaches a step in one state only
            return
        started = time.perf_counter()
        staged = self._stage({name: tensor.detach() for name, tensor in checkpoint.tensors.items()})
        blocked = time.perf_counter() - started
        self._thread = threading.Thread(
            target=self._write, args=(path, staged, checkpoint.state, blocked), name="checkpoint"
        )
        self._thread.start()
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def newest(self, *, set_aside: bool = False) -> Saved | None:
        """Returns the newest checkpoint that is not damaged, None if there never was one.

        A damaged one is reported and the one before it is tried. set_aside: also rename damaged ones to <name>.damaged,
        which only the process that trains may do. Without it nothing on disk is changed, and the run may go on saving
        and deleting meanwhile.

        Raises: CheckpointError: if all are damaged.
        """
        tried: set[Path] = set()
        while paths := [path for path in self._ranks.from_main(self.paths) if path not in tried]:
            path = paths[-1]
            found = self._verified(path)
            if isinstance(found, Saved):
                return found
            if self._ranks.from_main(path.is_dir):  # else the run has deleted it meanwhile, and there are newer ones
                self._ranks.from_main(lambda path=path, reason=found: _report(path, reason, set_aside))  # type: ignore[misc]
                tried.add(path)
        if tried:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is readable; to start again from step 0, choose another run_dir"
            )
        return None

    def read(self, path: Path) -> Saved:
        """Returns the checkpoint in a folder, which may be of another run; changes nothing on disk.

        Raises: CheckpointError: if it is damaged, or there is none.
        """
        found = self._verified(path)
        if isinstance(found, Saved):
            return found
        is_there = self._ranks.from_main(path.is_dir)
        raise CheckpointError(f"{path} is damaged: {found}" if is_there else f"{path} is not there any more")

    def has_any(self) -> bool:
        """Whether the run has a checkpoint, damaged or not; every rank must call this."""
        return bool(self._ranks.from_main(self.paths))

    def remove_temporaries(self) -> None:
        """Deletes the unfinished checkpoints of killed processes; for the process that trains, before it saves."""
        if self._ranks.is_main:
            for leftover in self.folder.glob(".step_*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)

    def paths(self) -> list[Path]:
        """Returns the folders of all complete checkpoints, oldest first."""
        return checkpoints_in(self.folder)

    def _stage(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors in host memory, where training does not change them while they are written."""
        if all(tensor.device.type == "cpu" for tensor in tensors.values()):
            # torch's stager copies a sharded tensor twice
            return {name: tensor.clone() for name, tensor in tensors.items()} if self._asynchronous else tensors
        if self._staged != tensors.keys():  # the buffers fit one set of tensors
            self._stager.state_dict_cache, self._staged = None, set(tensors)
        return dict(self._stager.stage(tensors))

    def _write(self, path: Path, tensors: dict[str, Tensor], state: Mapping[str, Any], blocked: float) -> None:
        """Runs in the thread: writes the checkpoint together with the other ranks, or warns why it cannot."""
        started, temporary = time.perf_counter(), _temporary(path)
        try:
            self._together(lambda: _make_empty(temporary) if self._ranks.is_main else None)
            writer = StreamingWriter(temporary, self._watch)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns that there is a single process
                save(tensors, storage_writer=writer, process_group=self._group)
            if self._is_not_finite(path, writer):
                return
            digests = self._ranks.gather(writer.digests, self._group)
            files = {name: digest for each in digests for name, digest in each.items()}
            self._together(lambda: self._complete(path, temporary, state, files) if self._ranks.is_main else None)
            size, seconds = sum(each["bytes"] for each in files.values()), time.perf_counter() - started
            self.written = Written(size, seconds + blocked, blocked)
        except (OSError, SafetensorError, CheckpointException, RuntimeError) as error:
            if is_lost_rank(error):
                return  # training notices the lost rank, too, and reports it
            if self._ranks.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                log.warning(
                    "warning: %s cannot be written: %s; the checkpoints before it are intact and the run goes on: "
                    "free disk space",
                    path,
                    _reason(error),
                )

    def _is_not_finite(self, path: Path, writer: StreamingWriter) -> bool:
        """Whether any rank met a number that is not finite, with a warning: such a checkpoint is of no use."""
        names = [name for name in self._ranks.gather(writer.not_finite, self._group) if name is not None]
        if names and self._ranks.is_main:
            shutil.rmtree(writer.folder, ignore_errors=True)
            log.warning(
                "warning: %s is not written: %s has numbers that are not finite; the checkpoints before it are intact "
                "and the run goes on",
                path,
                names[0],
            )
        return bool(names)

    def _together(self, function: Any) -> list[Any]:
        """Calls function on every rank and returns all results; fails on all ranks if it fails on one."""
        value, failure = None, None
        try:
            with self._watch.busy("writing a checkpoint"):
                value = function()
        except (OSError, SafetensorError) as error:
            failure = f"rank {self._ranks.rank}: {error}"
        found = self._ranks.gather((value, failure), self._group)
        if failures := [failure for _, failure in found if failure is not None]:
            raise OSError(failures[0])
        return [value for value, _ in found]

    def _complete(
        self, path: Path, temporary: Path, state: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]
    ) -> None:
        write_json(temporary / STATE, state)
        write_json(temporary / MANIFEST, {"files": {**files, STATE: digest_of(temporary / STATE)}})
        temporary.rename(path)
        fsync_folder(self.folder)
        for old in self.paths()[: -self.keep]:
            step = step_of(old)
            is_multiple = self.permanent_every is not None and step % self.permanent_every == 0
            if not is_multiple and step not in self.permanent_at:
                old.rename(_temporary(old))  # first, so that nobody reads a checkpoint that is half deleted
                shutil.rmtree(_temporary(old))

    def _verified(self, path: Path) -> Saved | str:
        """The checkpoint at path, or what is wrong with it; every rank checks a share of its files."""
        manifest, reason = self._ranks.from_main(lambda: read_manifest(path), f"reading {path}")
        reason = reason or self._damage(path, manifest)
        if reason is not None:
            return reason
        with self._watch.busy(f"reading {path}"):
            return self._opened(path)

    def _damage(self, path: Path, manifest: Mapping[str, Any]) -> str | None:
        """What is wrong with the files, None if nothing is; every rank checks a share of them."""
        mine = sorted(manifest)[self._ranks.rank :: self._ranks.world_size]
        found = None
        for name in mine:
            try:
                with self._watch.busy(f"checking {path / name}"):
                    found = found or damage_of(path / name, manifest[name])
            except OSError as error:
                found = found or f"{type(error).__name__}: {error}"
        return next((each for each in self._ranks.gather(found) if each is not None), None)

    def _opened(self, path: Path) -> Saved:
        state = read_json(path / STATE) or {}
        stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        metadata = {name: (tuple(each.size), each.properties.dtype) for name, each in stored.items()}  # type: ignore[union-attr]
        return Saved(path, state, metadata, self._ranks, self._watch)


def _report(path: Path, reason: str, set_aside: bool) -> None:
    log.warning("checkpoint %s is damaged: %s; trying the one before it", path, reason)
    if set_aside:
        path.rename(_unused(path.with_name(f"{path.name}.damaged")))


def parameters_sha256(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Returns the sha256 of names, shapes, dtypes and bits of the parameters: full tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, parameter in parameters:
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _temporary(path: Path) -> Path:
    """A checkpoint's name while it is unfinished, the same on all ranks."""
    return path.with_name(f".{path.name}.tmp")


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _reason(error: BaseException) -> str:
    """The error in one line, without the CheckpointException that torch wraps it in."""
    if isinstance(error, CheckpointException):
        rank, (inner, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {type(inner).__name__}: {inner}".partition("\n")[0]
    return str(error).partition("\n")[0]


def _unused(path: Path) -> Path:
    candidates = (path.with_name(f"{path.name}{n or ''}") for n in range(1000))
    return next(candidate for candidate in candidates if not candidate.exists())

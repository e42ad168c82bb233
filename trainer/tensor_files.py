"""Writes a rank's part of a checkpoint as one safetensors file, while training goes on in another thread.

torch 2.13's writer (filesystem.py, _write_files_from_queue) first builds the file's bytes in one call that holds the
GIL, 0.5 s for 1 GB, in which training stops. Here numbers are checked, hashed and written in pieces that fit in the
CPU's cache, so memory is read once, without the GIL.

The format: https://github.com/huggingface/safetensors#format. File names, and the metadata of sharded tensors in the
header, are those of torch, whose reader reads the files.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from typing_extensions import override

from files.writing import fsync
from trainer.heartbeat import Watch
from trainer.manifest import DIGEST, DIGESTS

PIECE = 1 << 18  # numbers that are checked, hashed and written at once
BACKLOG = 1 << 26  # bytes after which the disk is told to begin
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
BITS = {  # integers of the same size, and infinity as one of them; NaN is a larger one
    torch.float64: (torch.int64, 0x7FF << 52),
    torch.float32: (torch.int32, 0xFF << 23),
    torch.bfloat16: (torch.int16, 0xFF << 7),
    torch.float16: (torch.int16, 0x1F << 10),
}


class NotFiniteError(ValueError):
    """Raised where a tensor has numbers that are not finite; its text is the tensor's name."""


class StreamingWriter(HuggingFaceStorageWriter):
    """The storage writer for torch.distributed.checkpoint.save: writes all tensors of a rank to one file in a folder.

    digests: size and digest of the file once it is durable, as manifest.digest_of returns them, by name; empty if the
    rank has no tensors. not_finite: the name of a tensor with numbers that are not finite, where writing ended; None if
    there is none.
    """

    def __init__(self, folder: Path, watch: Watch) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.folder, self._watch = folder, watch
        self.digests: dict[str, dict[str, Any]] = {}
        self.not_finite: str | None = None

    @override
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's tensors to one file. Raises: OSError: if it cannot be written."""
        if plan.items:
            name = f"shard-{plan.storage_data['shard_index']:05d}-model-00001-of-00001.safetensors"
            tensors: dict[str, Any] = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            try:
                with self._watch.busy(f"writing {self.folder / name}"):
                    self.digests = {name: write_tensors(self.folder / name, tensors, _offsets(plan.items))}
            except NotFiniteError as error:  # no exception for torch, which would log it
                self.not_finite = str(error)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, 0, None) for item in plan.items])
        return done


class WatchedReader(HuggingFaceStorageReader):
    """The storage reader for torch.distributed.checkpoint.load, which tells the watch while it reads."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        super().__init__(str(folder))
        self._folder, self._watch = folder, watch

    @override
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        with self._watch.busy(f"reading {self._folder}"):
            return super().read_data(plan, planner)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Writes CPU tensors of any shape to a safetensors file, durably; returns what manifest.digest_of would.

    Raises: OSError: if it cannot be written. KeyError: for a dtype that the format does not have. NotFiniteError: if
    a number is not finite; the file then ends before it.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))  # so all are aligned
    digest, size, begun = DIGESTS[DIGEST](), 0, 0
    with path.open("wb") as file:
        for piece in _pieces(ordered, metadata):
            digest.update(piece)
            size += file.write(piece)
            if size - begun >= BACKLOG:
                _begin_to_write(file.fileno(), begun, size - begun)
                begun = size
    fsync(path)
    return {"bytes": size, DIGEST: digest.hexdigest()}


def _pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yields the file: length of the header, header, and the bytes of one tensor after the other, once checked."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name, tensor in tensors.items():
        for part in torch.split(tensor.detach().contiguous().reshape(-1), PIECE):
            if not _is_finite(part):
                raise NotFiniteError(name)
            yield part.view(torch.uint8).numpy().data


def _is_finite(part: Tensor) -> bool:
    """Whether all numbers of a one-dimensional tensor are finite.

    By their bits, in NumPy: torch's isfinite takes several times as long, and threads that training needs.
    """
    if part.dtype not in BITS:
        return True
    dtype, infinity = BITS[part.dtype]
    magnitudes = part.view(dtype).numpy() & torch.iinfo(dtype).max  # without the sign
    return bool(magnitudes.max(initial=0) < infinity)


def _begin_to_write(descriptor: int, start: int, n_bytes: int) -> None:
    """Lets the disk begin with a part of a file, and does not wait for it; else it would at the fsync."""
    if sys.platform == "linux":
        with suppress(OSError):  # not every kernel and file system takes advice
            os.posix_fadvise(descriptor, start, n_bytes, os.POSIX_FADV_DONTNEED)


def _offsets(items: Sequence[WriteItem]) -> dict[str, str]:
    """The header's metadata for torch's reader: where in the full tensors the parts begin."""
    offsets = {item.index.fqn: {"saved_offsets": list(item.tensor_data.chunk.offsets)} for item in items}  # type: ignore[union-attr]  # all are tensors
    return {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}

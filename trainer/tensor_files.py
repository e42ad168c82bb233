"""Writes a rank's part of a checkpoint as one safetensors file, while training goes on in another thread.

torch 2.13's writer (filesystem.py, _write_files_from_queue) first builds the file's bytes in one call that holds the
GIL, 0.5 s for 1 GB, in which training stops. Here the bytes are written and hashed in pieces, and both release the GIL.
The format: https://github.com/huggingface/safetensors#format. File names, and the metadata of sharded tensors in the
header, are those of torch, whose reader reads the files.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
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

PIECE = 1 << 22  # bytes that are hashed and written at once, while they are in the CPU's cache
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


class StreamingWriter(HuggingFaceStorageWriter):
    """The storage writer for torch.distributed.checkpoint.save: writes all tensors of a rank to one file in a folder.

    digests: size and hash of the file once it is durable, {name: {"bytes": size, "sha256": hex}}; empty if the rank
    has no tensors.
    """

    def __init__(self, folder: Path, watch: Watch) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.folder, self._watch = folder, watch
        self.digests: dict[str, dict[str, Any]] = {}

    @override
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's tensors to one file. Raises: OSError: if it cannot be written."""
        if plan.items:
            name = f"shard-{plan.storage_data['shard_index']:05d}-model-00001-of-00001.safetensors"
            tensors: dict[str, Any] = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            with self._watch.busy(f"writing {self.folder / name}"):
                self.digests = {name: write_tensors(self.folder / name, tensors, _offsets(plan.items))}
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
    """Writes CPU tensors of any shape to a safetensors file, durably; returns {"bytes": size, "sha256": hex}.

    Raises: OSError: if it cannot be written. KeyError: for a dtype that the format does not have.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))  # so all are aligned
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in _pieces(ordered, metadata):
            digest.update(piece)
            size += file.write(piece)
    fsync(path)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yields the file: length of the header, header, and the bytes of one tensor after the other."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), PIECE):
            yield content[start : start + PIECE]


def _offsets(items: Sequence[WriteItem]) -> dict[str, str]:
    """The header's metadata for torch's reader: where in the full tensors the parts begin."""
    offsets = {item.index.fqn: {"saved_offsets": list(item.tensor_data.chunk.offsets)} for item in items}  # type: ignore[union-attr]  # all are tensors
    return {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}

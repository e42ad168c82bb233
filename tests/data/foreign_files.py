"""Writes token files as other projects do, from the descriptions of their formats; nothing of data/ is used."""

import struct
from collections.abc import Sequence
from pathlib import Path


def llm_c(
    path: Path, tokens: Sequence[int], *, magic: int = 20240520, version: int = 1, count: int | None = None
) -> Path:
    """llm.c, dev/data/data_common.py: 256 int32, then uint16, or uint32 in version 7."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack("<256i", magic, version, len(tokens) if count is None else count, *[0] * 253)
    path.write_bytes(header + struct.pack(f"<{len(tokens)}{'I' if version == 7 else 'H'}", *tokens))
    return path


def nanogpt(path: Path, tokens: Sequence[int]) -> Path:
    """nanoGPT, data/*/prepare.py: uint16 without a header, by numpy's tofile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))
    return path

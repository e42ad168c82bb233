"""The files of a checkpoint: which there must be, their sizes and digests.

A digest finds damage, not forgery: the manifest lies beside the files. XXH3 does so at the speed of memory, ten times
that of sha256, which older checkpoints have.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from files.reading import leads_out, read_json

STATE, MANIFEST = "state.json", "manifest.json"
DIGEST = "xxh3_128"  # of what is written now
DIGESTS: dict[str, Callable[[], Any]] = {DIGEST: xxhash.xxh3_128, "sha256": hashlib.sha256}
NAME = re.compile(r"step_\d{6,}")
UNREADABLE = (OSError, KeyError, AttributeError, TypeError, ValueError, RecursionError, SafetensorError)


def name_at(step: int) -> str:
    """Returns the name of the folder of a checkpoint after so many steps."""
    return f"step_{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Returns the step of a checkpoint by its folder's name."""
    return int(checkpoint.name.removeprefix("step_"))


def checkpoints_in(folder: Path) -> list[Path]:
    """Returns the folders of all complete checkpoints in a run's folder of checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step_*") if NAME.fullmatch(path.name)), key=step_of)


def read_manifest(path: Path) -> tuple[dict[str, Any], str | None]:
    """Returns the checkpoint's files with their digests, and what is wrong with the folder (None: nothing).

    Wrong: a file too many or too few, or one that cannot be parsed, which the reader would only find out on some rank.
    """
    try:
        files: dict[str, Any] = _object(path / MANIFEST)["files"]
        entries = list(path.iterdir())
        if odd := sorted(entry.name for entry in entries if not entry.is_file() or leads_out(entry)):
            return {}, f"{odd[0]} is no regular file of this folder"
        there = {entry.name for entry in entries} - {MANIFEST}
        if odd := sorted(there ^ files.keys()):
            return {}, f"{odd[0]} is {'not in the manifest' if odd[0] in there else 'missing'}"
        _object(path / STATE)
        HuggingFaceStorageReader(str(path)).read_metadata()
    except UNREADABLE as error:
        return {}, f"{type(error).__name__}: {error}"
    return files, None


def digest_of(path: Path, kind: str = DIGEST) -> dict[str, Any]:
    """Returns {"bytes": size, kind: digest in hexadecimal digits} of a file; kind: of DIGESTS. Raises: OSError."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, kind: hashlib.file_digest(file, DIGESTS[kind]).hexdigest()}


def damage_of(path: Path, recorded: Any) -> str | None:
    """Returns what is wrong with a file, None if it is as the manifest has recorded. Raises: OSError."""
    found = digest_of(path, next((kind for kind in DIGESTS if isinstance(recorded, dict) and kind in recorded), DIGEST))
    return None if found == recorded else f"{path.name} should have {recorded}, has {found}"


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if found is None:
        raise FileNotFoundError(f"there is no {path.name}")
    return found

"""Writes the description of tokens that lie elsewhere; see metadata.py, "in_place"."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data import identity
from data.errors import DataError
from data.identity import SourceFile
from data.metadata import DTYPES, base_meta, shards_of
from data.shards import write_meta
from data.tokenizers import TOKENIZER_FILE
from files.writing import write_bytes


def write(
    folder: Path,
    settings: Mapping[str, Any],
    tokenizer: bytes,
    found: Mapping[str, Any],
    files: Sequence[SourceFile] = (),
) -> None:
    """Writes the description of tokens that lie elsewhere, and were hashed just now, to folder.

    tokenizer: the content of tokenizer.json. found: vocab_size, eot, dtype and splits of dataset.json. files: those of
    the source, if they may change.

    Raises: DataError: if a file to validate on has the same content as one to train on.
    """
    _check_apart(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / TOKENIZER_FILE, tokenizer)
    sha256 = hashlib.sha256(tokenizer).hexdigest()
    meta = base_meta(settings, sha256, found["vocab_size"], found["eot"], DTYPES[found["dtype"]])
    meta |= {"in_place": True, "text_bytes": None, "splits": found["splits"]}
    write_meta(folder, meta | {"source_files": identity.write(folder, files)})


def _check_apart(found: Mapping[str, Any]) -> None:
    trained_on = {shard.sha256: shard.file for shard in shards_of(found, "train")}
    for shard in shards_of(found, "val"):
        if shard.sha256 in trained_on:
            raise DataError(
                f"{shard.file} is to validate, but has the same content as {trained_on[shard.sha256]}, which is "
                "trained on: name other files for one of the two"
            )

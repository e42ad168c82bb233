"""Finds the folder of a data set by its settings, and has its source fill it, by one process at a time."""

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data import identity
from data.encoding import is_begun, remove_plan
from data.errors import DataError
from data.hashing import n_cores
from data.metadata import META_FILE
from data.source import DataSource, Request
from data.tokenizers import Recipe
from files.lock import locked
from files.paths import expanded


def dataset_dir(
    root: Path, source: DataSource, tokenizer: Recipe, *, val_fraction: float | None, split_seed: int, shard_tokens: int
) -> Path:
    """Returns the data set's folder: root/<source>-<tokenizer>-<8 hex digits of a hash of all settings>."""
    settings = _settings(source, tokenizer, expanded(root), val_fraction, split_seed, shard_tokens)
    return expanded(root) / _folder_name(settings)


def is_prepared(path: Path) -> bool:
    """Whether the data set in folder path is complete."""
    try:
        return (path / META_FILE).is_file() and not is_begun(path)
    except PermissionError:
        return False


def prepare(
    source: DataSource,
    tokenizer: Recipe,
    root: Path,
    *,
    val_fraction: float | None,
    split_seed: int,
    shard_tokens: int,
    workers: int | None,
    console: bool = True,
) -> Path:
    """Returns the folder of the data set; prepares it unless it is complete.

    val_fraction: of the documents, or of the text of a single document (splitting.py); None: the usual one. workers:
    threads that encode, None: one per core; the result does not depend on them. If several processes prepare the same
    data set, one works and the others wait.

    Raises: DataError: if the settings, the source, its documents or the disk do not allow it, or the source's files
    are no longer those that the complete data set was made from.
    """
    _check_settings(val_fraction, split_seed, shard_tokens, workers)
    root = expanded(root)
    settings = _settings(source, tokenizer, root, val_fraction, split_seed, shard_tokens)
    path = root / _folder_name(settings)
    with _failures_explained(path):
        if is_prepared(path):
            _check_unchanged(source, path)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent / f".{path.name}.lock", "preparing this data set"):
            if not (path / META_FILE).is_file():
                source.fill(Request(path, tokenizer, settings, workers or n_cores(), console))
            remove_plan(path)
    return path


def _settings(
    source: DataSource, tokenizer: Recipe, root: Path, val_fraction: float | None, split_seed: int, shard_tokens: int
) -> dict[str, Any]:
    return {
        "source": {"name": source.name, **source.settings, **source.contents(root)},
        "tokenizer": {"name": tokenizer.name, **tokenizer.settings},
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "shard_tokens": shard_tokens,
    }


def _folder_name(settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{settings['source']['name']}-{settings['tokenizer']['name']}-{digest[:8]}"


def _check_unchanged(source: DataSource, path: Path) -> None:
    change = identity.difference(source, path)
    if change is not None:
        raise DataError(
            f"the files of data={source.name} have changed since {path} was prepared ({change}): delete that folder to "
            "prepare them as they are now, or train on it as it is"
        )


def _check_settings(val_fraction: Any, split_seed: Any, shard_tokens: Any, workers: Any) -> None:
    is_number = isinstance(val_fraction, int | float)
    if val_fraction is not None and not (is_number and 0 < val_fraction < 1):
        raise DataError(f"data.val_fraction={val_fraction} must lie in (0, 1), or be null for the usual one")
    if not isinstance(split_seed, int) or split_seed < 0:
        raise DataError(f"data.split_seed={split_seed} must be a whole number >= 0")
    if not isinstance(shard_tokens, int) or shard_tokens < 1:
        raise DataError(f"data.shard_tokens={shard_tokens} must be a whole number >= 1")
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise DataError(f"data.workers={workers} must be a whole number >= 1, or null for one per core")


@contextmanager
def _failures_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"the disk filled up while preparing {path}: make room; the next run continues there"
        else:
            reason = f"cannot prepare {path}: {error.filename or 'a file'}: {error.strerror or error}"
        raise DataError(reason) from error

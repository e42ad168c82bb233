"""The content of dataset.json, and the check that it is consistent.

The shards of a data set lie in its folder, named by shard_name, all but the last with shard_tokens tokens. If it is
"in_place", they are files of any size elsewhere, with absolute paths; only their description is in the folder.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

META_FILE = "dataset.json"
META_BYTES = 1 << 25  # at most; a shard takes about 200
FORMAT = 1
SHARES = 1 << 16  # how finely the weights of a mixture are resolved
DTYPES: Mapping[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True, slots=True)
class Shard:
    """The entry of one shard in dataset.json."""

    file: str
    n_tokens: int
    n_bytes: int
    sha256: str
    max_id: int
    header_bytes: int = 0  # before the first token


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a split from which windows are read; a mixture has several, any other data set one."""

    name: str
    n_tokens: int
    share: int = SHARES  # of SHARES sequences, how many are read from it


def shard_name(split: str, index: int) -> str:
    """Returns the file name of a shard."""
    return f"{split}_{index:05d}.bin"


def split_checksum(shards: list[Shard]) -> str:
    """Returns the checksum of a split: the sha256 of its shards' digests in order."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()


def split_meta(shards: list[Shard], n_documents: int) -> dict[str, Any]:
    """Returns the entry of one split in dataset.json."""
    return {
        "n_documents": n_documents,
        "n_tokens": sum(shard.n_tokens for shard in shards),
        "checksum": split_checksum(shards),
        "shards": [asdict(shard) for shard in shards],
    }


def base_meta(
    settings: Mapping[str, Any], tokenizer_sha256: str, vocab_size: int, eot: int, dtype: np.dtype[Any]
) -> dict[str, Any]:
    """Returns what dataset.json says of settings, tokenizer and token ids."""
    return {
        "format": FORMAT,
        **settings,
        "tokenizer": {**settings["tokenizer"], "sha256": tokenizer_sha256},
        "dtype": next(name for name, each in DTYPES.items() if each == dtype),
        "vocab_size": vocab_size,
        "eot": eot,
    }


def parts_of(meta: Mapping[str, Any], split: str, name: str) -> list[Part]:
    """Returns the parts of one split of a checked dataset.json, in the order of their tokens; name: of a single one."""
    entry = meta["splits"][split]
    return [Part(**part) for part in entry.get("parts", [{"name": name, "n_tokens": entry["n_tokens"]}])]


def remedy(meta: Mapping[str, Any], path: Path) -> str:
    """Returns what to do about files of the data set in folder path that are not what dataset.json says."""
    if meta.get("in_place"):
        return (
            f"put back the file as it was, or delete {path}, which holds no tokens, to take the files as they are now"
        )
    return "delete the folder and prepare the data set again"


def shards_of(meta: Mapping[str, Any], split: str) -> list[Shard]:
    """Returns the shards of one split of a checked dataset.json."""
    return [Shard(**shard) for shard in meta["splits"][split]["shards"]]


def check(meta: Mapping[str, Any]) -> None:
    """Checks that no entry is missing, of a wrong type, or contradicts another, and that files lie in the folder.

    Raises: ValueError: says what is wrong.
    """
    if want(meta.get("format"), int, "format") != FORMAT:
        raise ValueError(f"format {meta['format']}, expected {FORMAT}")
    dtype, vocab_size = want(meta.get("dtype"), str, "dtype"), _count(meta, "vocab_size", least=1)
    if dtype not in DTYPES or vocab_size > 1 << 8 * DTYPES[dtype].itemsize:
        raise ValueError(f"{vocab_size} ids do not fit dtype {dtype!r}")
    if _count(meta, "eot", least=0) >= vocab_size:
        raise ValueError(f"eot is {meta['eot']}, but there are {vocab_size} ids")
    shard_tokens, in_place = _count(meta, "shard_tokens", least=1), want(meta.get("in_place", False), bool, "in_place")
    if not in_place or meta.get("text_bytes") is not None:
        _count(meta, "text_bytes", least=0)
    _sha256(want(meta.get("tokenizer"), dict, "tokenizer").get("sha256"), "tokenizer.sha256")
    if (found := meta.get("source_files")) is not None:
        _count(want(found, dict, "source_files"), "n_files", least=1)
        _sha256(found.get("sha256"), "source_files.sha256")
    for split, entry in want(meta.get("splits"), dict, "splits").items():
        if not re.fullmatch("[a-z]+", split):
            raise ValueError(f"{split!r} is no name of a split")
        shards = _check_shards(split, want(entry, dict, split), in_place, DTYPES[dtype].itemsize)
        sizes = [shard.n_tokens for shard in shards]
        if not in_place and (any(n != shard_tokens for n in sizes[:-1]) or any(n > shard_tokens for n in sizes[-1:])):
            raise ValueError(f"all shards of {split} but the last must have {shard_tokens} tokens, that one no more")
        _check_counts(split, entry, shards)


def _check_shards(split: str, entry: Mapping[str, Any], in_place: bool, itemsize: int) -> list[Shard]:
    names = {field.name for field in fields(Shard)}
    shards: list[Shard] = []
    for index, found in enumerate(want(entry.get("shards"), list, f"{split}.shards")):
        what = f"shard {index} of {split}"
        if not names - {"header_bytes"} <= set(want(found, dict, what)) <= names:
            raise ValueError(f"{what} must have exactly {', '.join(sorted(names))}")
        if in_place:
            if not Path(want(found["file"], str, what)).is_absolute() or "\0" in found["file"]:
                raise ValueError(f"{what} is {found['file']!r}, expected an absolute path")
        elif found["file"] != shard_name(split, index):
            raise ValueError(f"{what} is {found['file']!r}, expected {shard_name(split, index)}")
        _sha256(found["sha256"], f"sha256 of {what}")
        _count(found, "max_id", least=0)
        header = _count({"header_bytes": 0} | found, "header_bytes", least=0)
        if _count(found, "n_bytes", least=1) - header != _count(found, "n_tokens", least=1) * itemsize:
            raise ValueError(f"{what} has {found['n_bytes']} bytes for {found['n_tokens']} tokens of {itemsize} bytes")
        shards.append(Shard(**found))
    return shards


def _check_counts(split: str, entry: Mapping[str, Any], shards: list[Shard]) -> None:
    if _count(entry, "n_tokens", least=0) != sum(shard.n_tokens for shard in shards):
        raise ValueError(f"{split}.n_tokens is {entry['n_tokens']}, not the sum of its shards")
    if entry.get("checksum") != split_checksum(shards):
        raise ValueError(f"{split}.checksum is not that of its shards")
    _count(entry, "n_documents", least=0)
    if (found := entry.get("parts")) is None:
        return
    for part in want(found, list, f"{split}.parts"):
        if set(want(part, dict, f"a part of {split}")) != {field.name for field in fields(Part)}:
            raise ValueError(f"a part of {split} must have exactly name, n_tokens, share")
        want(part["name"], str, "the name of a part")
        _count(part, "n_tokens", least=1)
        _count(part, "share", least=1)
    if sum(part["n_tokens"] for part in found) != entry["n_tokens"]:
        raise ValueError(f"{split}.n_tokens is {entry['n_tokens']}, not the sum of its parts")
    if sum(part["share"] for part in found) != SHARES:
        raise ValueError(f"the shares of {split}'s parts do not add up to {SHARES}")


def _count(entry: Mapping[str, Any], key: str, least: int) -> int:
    value: int = want(entry.get(key), int, key)
    if not least <= value < 1 << 63:
        raise ValueError(f"{key} is {value}, expected {least} or more")
    return value


def _sha256(value: Any, what: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", want(value, str, what)):
        raise ValueError(f"{what} must be 64 hexadecimal digits")


def want(value: Any, kind: type, what: str) -> Any:
    """Returns the value if it is of the type `kind`.

    Raises: ValueError: if it is not; what: how the message names it.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{what} is a {type(value).__name__}, expected {kind.__name__}")
    return value

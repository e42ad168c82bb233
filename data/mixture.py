"""Mixtures of prepared data sets: every part gives its share of a run's sequences; see windows.py.

A mixture is identified by the names, weights and checksums of its parts, so one with another part of the same name, or
with a part that was prepared anew, is another mixture.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from typing_extensions import override

from data import in_place
from data.errors import DataError
from data.metadata import META_FILE, SHARES, Part, Shard, shards_of, split_meta
from data.shards import TokenDataset, read_meta
from data.source import DataSource, Request
from data.tokenizers import TOKENIZER_FILE, Recipe, Sample, Tokenizer, load_tokenizer
from files.paths import expanded


class Mixture(DataSource):
    """Prepared data sets with weights; the tokens stay where they are.

    parts: for each data set's folder, by its path or its name in data.root, the weight of its sequences. Weights need
    not add up to one. Both splits are mixed.
    """

    name = "mixture"
    embedded = True

    def __init__(self, parts: Mapping[str, float]) -> None:
        self.weights = {
            folder: parts[folder] for folder in sorted(parts, key=lambda folder: (Path(folder).name, folder))
        }
        if len(parts) < 2:
            raise DataError(f"data.source.parts names {len(parts)} data sets; a mixture has at least two")
        for folder, weight in self.weights.items():
            if not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise DataError(f"data.source.parts: the weight of {folder} is {weight}, expected a number above 0")
        names = [Path(folder).name for folder in self.weights]
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"data.source.parts has {twice[0]} twice")

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        return {"parts": {Path(folder).name: weight for folder, weight in self.weights.items()}}

    @override
    def contents(self, root: Path) -> Mapping[str, Any]:
        metas = {Path(folder).name: read_meta(_found(folder, root)) for folder in self.weights}
        return {"contents": {name: _checksums(meta) for name, meta in metas.items()}}

    @override
    def fill(self, request: Request) -> None:
        if request.recipe.name != OfParts.name:
            raise DataError(
                f"data=mixture has the tokenizer of its parts, not data/tokenizer={request.recipe.name}: leave it out"
            )
        folders = {folder: _found(folder, request.folder.parent) for folder in self.weights}
        metas = {folder: read_meta(path) for folder, path in folders.items()}
        first = _check_alike(metas)
        shares = _shares(self.weights)
        splits = {split: _split(split, folders, metas, shares) for split in ("train", "val")}
        load_tokenizer(folders[first])  # checks that it is the one that encoded the part
        tokenizer = (folders[first] / TOKENIZER_FILE).read_bytes()
        in_place.write(request.folder, request.settings, tokenizer, metas[first] | {"splits": splits})


class OfParts(Recipe):
    """The tokenizer that the parts of a mixture were encoded with."""

    name = "of_parts"

    @override
    def fit(self, sample: Sample) -> Tokenizer:
        raise DataError("data/tokenizer=of_parts is for data=mixture: choose another one")


def _found(folder: str, root: Path) -> Path:
    path = expanded(folder, "data.source.parts")
    return (path if (path / META_FILE).exists() or not (root / path).exists() else root / path).absolute()


def _checksums(meta: Mapping[str, Any]) -> dict[str, str]:
    splits = {split: entry["checksum"] for split, entry in meta["splits"].items()}
    return {"tokenizer": meta["tokenizer"]["sha256"], **splits}


def _check_alike(metas: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the first of the parts. Raises: DataError: if another one's token ids are others."""
    first, *others = metas
    for folder, meta in metas.items():
        if any("parts" in entry for entry in meta["splits"].values()):
            raise DataError(f"data.source.parts: {folder} is a mixture itself; name its parts instead")
    for folder in others:
        if metas[folder]["tokenizer"]["sha256"] != metas[first]["tokenizer"]["sha256"]:
            raise DataError(
                f"data.source.parts: {folder} was encoded with another tokenizer than {first}; prepare it again with "
                f"data/tokenizer=file data.tokenizer.path=<folder of {Path(first).name}>/{TOKENIZER_FILE}"
            )
        if metas[folder]["dtype"] != metas[first]["dtype"]:
            raise DataError(
                f"data.source.parts: {folder} holds {metas[folder]['dtype']}, but {first} {metas[first]['dtype']}: "
                "all parts must be alike"
            )
    return first


def _shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Of SHARES sequences, how many each part gives; they add up to SHARES."""
    total = sum(weights.values())
    ends = [round(SHARES * end / total) for end in accumulate(weights.values())]
    shares = dict(zip(weights, (end - start for start, end in zip([0, *ends], ends, strict=False)), strict=True))
    if small := [folder for folder, share in shares.items() if share == 0]:
        raise DataError(
            f"data.source.parts: the weight of {small[0]}, {weights[small[0]]:g} of {total:g}, is below 1/{SHARES}: "
            "leave it out, or raise it"
        )
    return shares


def _split(
    split: str, folders: Mapping[str, Path], metas: Mapping[str, Mapping[str, Any]], shares: Mapping[str, int]
) -> dict[str, Any]:
    """The entry of a split: the shards of all parts, one part after the other, and the parts' shares."""
    shards: list[Shard] = []
    parts: list[dict[str, Any]] = []
    for folder, path in folders.items():
        part = TokenDataset.open(path, split)  # verifies the files, and remembers that
        shards += [_with_path(shard, path) for shard in shards_of(metas[folder], split)]
        parts.append(asdict(Part(Path(folder).name, part.n_tokens, shares[folder])))
    n_documents = sum(meta["splits"][split]["n_documents"] for meta in metas.values())
    return split_meta(shards, n_documents) | {"parts": parts}


def _with_path(shard: Shard, folder: Path) -> Shard:
    return replace(shard, file=str(folder / shard.file))

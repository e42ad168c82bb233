"""Mixtures of prepared data sets: every part gives its share of a run's sequences; see windows.py.

A mixture is identified by the names, weights and checksums of its parts, so one with another part of the same name, or
with a part that was prepared anew, is another mixture.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from typing_extensions import override

from data import in_place
from data.encoding import is_begun
from data.errors import DataError, missing_dataset
from data.metadata import META_FILE, SHARES, Part, Shard, shards_of, split_meta
from data.shards import TokenDataset, read_meta
from data.source import DataSource, Request
from data.tokenizers import TOKENIZER_FILE, Recipe, Sample, Tokenizer, load_tokenizer
from files.paths import expanded
from files.reading import number

LARGEST = 1e100  # weight, so that their sum is finite


class Mixture(DataSource):
    """Prepared data sets with weights; the tokens stay where they are.

    parts: for each data set's folder, by its path or its name in data.root, the weight of its sequences. Weights need
    not add up to one. Both splits are mixed.
    """

    name = "mixture"
    embedded = True

    def __init__(self, parts: Mapping[str, float]) -> None:
        _check(parts)
        self.weights = {
            folder: parts[folder] for folder in sorted(parts, key=lambda folder: (Path(folder).name, folder))
        }

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


def _check(parts: Mapping[Any, Any]) -> None:
    """Raises: DataError: if they do not name two data sets or more with weights, by folders of different names."""
    if len(parts) < 2:
        raise DataError(f"data.source.parts names {len(parts)} data sets; a mixture has at least two")
    for folder, weight in parts.items():
        if not isinstance(folder, str):
            raise DataError(f"data.source.parts: the folder {folder} is not a text: write it as ./{folder}")
        if not 0 < (number(weight) or 0) < LARGEST:
            expected = f"expected a number above 0 and below {LARGEST:g}"
            raise DataError(f"data.source.parts: the weight of {folder} is {weight}, {expected}")
    by_name: dict[str, str] = {}
    for folder in parts:
        if (other := by_name.setdefault(Path(folder).name, folder)) != folder:
            raise DataError(
                f"data.source.parts has {Path(folder).name} twice, as {other} and as {folder}: parts are told apart by "
                "the names of their folders, rename one of the two"
            )


def _found(folder: str, root: Path) -> Path:
    """The folder of a part that is prepared. Raises: DataError: if there is none."""
    path = expanded(folder, "data.source.parts")
    places = list(dict.fromkeys(place.absolute() for place in (path, root / path)))
    for place in places:
        if (place / META_FILE).exists():
            return place
    for place in places:
        if is_begun(place):
            raise missing_dataset(place)
    if there := [place for place in places if place.exists()]:
        raise DataError(
            f"data.source.parts: {there[0]} is no prepared data set, it has no {META_FILE}: name the folder that "
            "scripts/prepare_data.py made"
        )
    raise DataError(
        f"data.source.parts: {folder} does not exist, neither here nor in data.root ({' or '.join(map(str, places))}): "
        "name the folder of a prepared data set; scripts/prepare_data.py makes one"
    )


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

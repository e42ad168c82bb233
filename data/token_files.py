"""Files of token ids that others wrote: llm.c's and modded-nanogpt's shards, nanoGPT's train.bin and val.bin.

They are read where they lie. The data set's folder holds their description, made when every file is read and hashed
once: dataset.json, tokenizer.json, source_files.jsonl. See metadata.py, "in_place".

llm.c's format: 256 int32, the magic number, the version and the number of tokens first, zeros after them; then the
tokens, uint16 in version 1 (GPT-2), uint32 in version 7 (Llama 3). nanoGPT's: uint16 without a header.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import override

from data import identity, in_place
from data.errors import DataError, MissingSource
from data.hashing import in_threads
from data.identity import Status
from data.metadata import DTYPES, Shard, split_meta
from data.opening import unreadable
from data.paths import find_files, number_of
from data.progress import progress
from data.source import DataSource, Request
from data.tokenizers import Recipe, Tokenizer
from data.verified import describe
from files.paths import expanded

HEADER_BYTES = 1024
MAGIC = (20240520, 20240801)  # of llm.c's files for GPT-2 and for Llama 3
VERSIONS = {1: "uint16", 7: "uint32"}


class Layout(NamedTuple):
    """Where the tokens of a file are, and of which type: a key of DTYPES."""

    header_bytes: int
    dtype: str


class TokenFiles(DataSource):
    """Token ids in .bin files that are there already, for training and for validation; the files are sorted by path.

    train, val: glob patterns. download: the data set of the Hugging Face hub that has the files, for the message if
    they are not there; gigabytes: how large it is.
    """

    name = "tokens"
    embedded = True

    def __init__(self, train: str, val: str, download: str | None = None, gigabytes: float | None = None) -> None:
        self.patterns = {"train": train, "val": val}
        self.download, self.gigabytes = download, gigabytes

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        return self.patterns

    @override
    def files(self) -> Sequence[str]:
        return [path for paths in self._paths().values() for path in paths]

    @override
    def fill(self, request: Request) -> None:
        if request.settings["val_fraction"] is not None:
            raise DataError(
                f"data.val_fraction={request.settings['val_fraction']} is for sources of text; data.source.val names "
                "the validation set of data=tokens: leave data.val_fraction at null"
            )
        paths = self._paths()
        looked = {path: identity.look(path) for path in self.files()}
        layouts = {path: layout_of(Path(path)) for path in looked}
        dtype = _common_dtype(layouts)
        tokenizer = _tokenizer(request.recipe)
        scans = _scanned(layouts, looked, tokenizer, request)
        splits = {
            split: split_meta([scans[path][0] for path in found], sum(scans[path][1] for path in found))
            for split, found in paths.items()
        }
        files = [identity.seen(path, looked[path], scans[path][0].sha256) for path in looked]
        content = json.dumps(tokenizer.to_json()).encode()
        meta = {"vocab_size": tokenizer.vocab_size, "eot": tokenizer.eot, "dtype": dtype, "splits": splits}
        in_place.write(request.folder, request.settings, content, meta, files)

    def _paths(self) -> dict[str, list[str]]:
        found = {split: self._matches(split) for split in self.patterns}
        trained_on = {number_of(Path(path).stat()): path for path in found["train"]}
        for path in found["val"]:
            if (number := number_of(Path(path).stat())) in trained_on:
                same = "" if path == trained_on[number] else f", the same file as {trained_on[number]},"
                raise DataError(
                    f"{path}{same} matches both data.source.train={self.patterns['train']!r} and "
                    f"data.source.val={self.patterns['val']!r}: what is trained on cannot validate; name other files"
                )
        return found

    def _matches(self, split: str) -> list[str]:
        pattern = self.patterns[split]
        found = find_files(expanded(pattern, f"data.source.{split}")).files
        if not found:
            raise MissingSource(f"data.source.{split}={pattern!r} matches no file{self._advice(pattern)}")
        if other := [path for path in found if not path.endswith(".bin")]:
            raise DataError(f"data.source.{split}={pattern!r} matches {other[0]}: expected .bin files of token ids")
        return [str(Path(path).absolute()) for path in found]

    def _advice(self, pattern: str) -> str:
        if self.download is None:
            return ": name .bin files of token ids; for text use data=files"
        size = "" if self.gigabytes is None else f" ({self.gigabytes:g} GB)"
        folder = Path(pattern).parent
        return f"; `hf download {self.download} --repo-type dataset --local-dir {folder}` fetches them{size}"


def layout_of(path: Path) -> Layout:
    """Returns where the tokens of a file are.

    Raises: DataError: if its header is not one of llm.c, or contradicts its size.
    """
    try:
        with path.open("rb") as file:
            first, size = file.read(HEADER_BYTES), path.stat().st_size
    except OSError as error:
        raise unreadable(str(path), error) from error
    numbers = np.frombuffer(first, "<i4").tolist() if len(first) == HEADER_BYTES else []
    # Tokens of text do not begin with hundreds of zeros, so a file that does has a header.
    if numbers and (numbers[0] in MAGIC or not any(numbers[3:])):
        return _with_header(path, numbers, size)
    if size == 0 or size % 2:
        raise DataError(f"{path} has {size:,} bytes, expected a header of llm.c or, as nanoGPT writes, 2 bytes a token")
    return Layout(0, "uint16")


def _with_header(path: Path, numbers: Sequence[int], size: int) -> Layout:
    magic, version, count = numbers[:3]
    if magic not in MAGIC:
        raise DataError(
            f"{path} begins with the number {magic}, expected {MAGIC[0]} or {MAGIC[1]} (llm.c's token files)"
        )
    if version not in VERSIONS:
        raise DataError(f"{path} is of version {version}, expected 1 (uint16) or 7 (uint32)")
    held = (size - HEADER_BYTES) / DTYPES[VERSIONS[version]].itemsize
    if count < 1 or held != count:
        raise DataError(
            f"{path} says that it has {count:,} tokens, but {held:,.10g} follow its header: it is truncated or "
            "damaged; fetch or write it again"
        )
    return Layout(HEADER_BYTES, VERSIONS[version])


def _tokenizer(recipe: Recipe) -> Tokenizer:
    try:
        return recipe.fit(lambda n_bytes: iter(()))
    except DataError as error:
        raise DataError(
            f"{error}. To train without the text of the tokens: data/tokenizer=ids data.tokenizer.vocab_size=<number>"
        ) from error


def _common_dtype(layouts: Mapping[str, Layout]) -> str:
    first, *others = layouts
    if other := [path for path in others if layouts[path].dtype != layouts[first].dtype]:
        raise DataError(
            f"{other[0]} holds {layouts[other[0]].dtype}, but {first} {layouts[first].dtype}: all files must be alike"
        )
    return layouts[first].dtype


def _scanned(
    layouts: Mapping[str, Layout], looked: Mapping[str, Status], tokenizer: Tokenizer, request: Request
) -> dict[str, tuple[Shard, int]]:
    """Each file's description and number of documents, by path."""

    def scan(path: str) -> tuple[Shard, int]:
        n_documents = 1 if tokenizer.eot_is_text else 0  # which nothing separates

        def count(tokens: np.ndarray) -> None:
            nonlocal n_documents
            n_documents += 0 if tokenizer.eot_is_text else int(np.count_nonzero(tokens == tokenizer.eot))

        layout = layouts[path]
        try:
            found = describe(Path(path), DTYPES[layout.dtype], layout.header_bytes, count)
        except OSError as error:
            raise unreadable(path, error) from error
        return replace(found, file=path), n_documents

    scans = {}
    n_bytes = sum(status.size for status in looked.values())
    with progress(request.console, "checking", n_bytes) as advance, in_threads(scan, layouts) as found:
        for path, (shard, n_documents) in zip(layouts, found, strict=True):
            _check_ids(shard, tokenizer, request)
            scans[path] = shard, n_documents
            advance(shard.n_bytes)
    return scans


def _check_ids(shard: Shard, tokenizer: Tokenizer, request: Request) -> None:
    if shard.max_id >= tokenizer.vocab_size:
        raise DataError(
            f"{shard.file} holds token id {shard.max_id}, but data/tokenizer={request.recipe.name} has "
            f"{tokenizer.vocab_size} ids: name the tokenizer that wrote it (data/tokenizer=ids "
            "data.tokenizer.vocab_size=<n> for any other), or fetch the file again if it is damaged"
        )

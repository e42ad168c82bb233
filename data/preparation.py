"""From a source and a tokenizer to a prepared data set, in bounded memory and restartable at any point.

1. Every unit of the source becomes a part: its tokens and the length of each document. Worker threads share the
   units (tiktoken and pyarrow work outside the GIL, so threads scale like processes and leave nothing behind).
2. Once all documents are counted they are split as `datasets.train_test_split(test_size=val_fraction, seed)` does:
   the validation set keeps that permutation's order, the training set the source's order.
3. The parts are joined into shards, and each part is deleted as soon as its tokens lie in finished shards.
4. dataset.json is written last. Whatever a killed run has finished is kept; the result has the same bytes.
"""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.shards import (
    DTYPES,
    FORMAT,
    META_FILE,
    Shard,
    ShardWriter,
    describe,
    read_meta,
    shard_name,
    split_meta,
    write_atomically,
    write_meta,
)
from data.sources import Source, Unit
from data.tokenizers import TOKENIZER_FILE, Recipe, Tokenizer, from_json

log = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
PARTS = "parts"


def dataset_dir(
    root: Path, source: Source, tokenizer: Recipe, *, val_fraction: float, split_seed: int, shard_tokens: int
) -> Path:
    """Where the data set of these settings lies: root/<source>-<tokenizer>-<8 hex digits of all settings>."""
    settings = _settings(source, tokenizer, val_fraction, split_seed, shard_tokens)
    return root / _folder_name(settings)


def prepare(
    source: Source,
    tokenizer: Recipe,
    root: Path,
    *,
    val_fraction: float,
    split_seed: int,
    shard_tokens: int,
    workers: int | None,
    console: bool = True,
) -> Path:
    """Prepares the data set and returns its folder; at once if it is complete.

    workers: threads that encode, None: one per core; they never change the result. Of several processes that prepare
    the same data set one works and the others wait.

    Raises: DataError: if the settings, the source or the disk's free space do not allow it.
    """
    _check_settings(val_fraction, shard_tokens, workers)
    settings = _settings(source, tokenizer, val_fraction, split_seed, shard_tokens)
    path = root / _folder_name(settings)
    if _is_complete(path):
        _check_unchanged(source, path)
        return path
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{path.name}.lock"), _disk_full_explained(path):
        if not (path / META_FILE).is_file():
            _Preparation(source, tokenizer, path, settings, workers or _n_cores(), console).run()
        if not _is_complete(path):
            shutil.rmtree(path / PARTS, ignore_errors=True)
            (path / PLAN_FILE).unlink()
    return path


@dataclass
class _Part:
    """The encoded documents of one unit; its lengths file appears last and stays until the data set is complete."""

    stem: Path

    @property
    def tokens_file(self) -> Path:
        return self.stem.with_suffix(".bin")

    @property
    def lengths_file(self) -> Path:
        return self.stem.with_suffix(".npy")

    def tokens(self, dtype: np.dtype[Any]) -> np.ndarray:
        return np.fromfile(self.tokens_file, dtype)


@dataclass
class _Preparation:
    source: Source
    recipe: Recipe
    path: Path
    settings: dict[str, Any]
    workers: int
    console: bool
    tokenizer: Tokenizer = field(init=False)
    dtype: np.dtype[Any] = field(init=False)
    units_digest: str = field(init=False)

    def run(self) -> None:
        units = list(self.source.units())
        self._start_or_continue(units)
        self.tokenizer = self._fit(units)
        self.dtype = DTYPES["uint16" if self.tokenizer.vocab_size <= 1 << 16 else "uint32"]
        parts = [_Part(self.path / PARTS / f"{i:06d}") for i in range(len(units))]
        todo = [(unit, part) for unit, part in zip(units, parts, strict=True) if not part.lengths_file.is_file()]
        self._check_disk(todo)
        self._encode_all(todo)
        self._finish(parts)

    def _start_or_continue(self, units: list[Unit]) -> None:
        """Keeps what an earlier run did if it worked on the same documents, else starts afresh."""
        self.units_digest = _units_digest(units)
        plan = {"settings": self.settings, "units": self.units_digest}
        for leftover in self.path.glob(".*"):  # of a write that a kill interrupted
            leftover.unlink()
        plan_file = self.path / PLAN_FILE
        if plan_file.is_file() and json.loads(plan_file.read_bytes()) == plan:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        (self.path / PARTS).mkdir(parents=True)
        write_atomically(plan_file, json.dumps(plan).encode())

    def _fit(self, units: list[Unit]) -> Tokenizer:
        file = self.path / TOKENIZER_FILE
        if not file.is_file():
            tokenizer = self.recipe.fit(lambda n_bytes: _sample(self.source, units, n_bytes))
            write_atomically(file, json.dumps(tokenizer.to_json()).encode())
        return from_json(json.loads(file.read_bytes()))

    def _check_disk(self, todo: list[tuple[Unit, _Part]]) -> None:
        if not todo:
            return
        texts = [text[:10_000] for text in islice(self.source.documents(todo[0][0]), 100)]
        n_bytes = sum(len(text) for text in texts) or 1
        n_tokens = sum(len(self.tokenizer.encode_document(text)) for text in texts)
        todo_tokens = sum(unit.n_bytes for unit, _ in todo) * n_tokens / n_bytes
        # Parts turn into shards one by one, so both together never hold more than one shard too much.
        shard_tokens = min(todo_tokens, self.settings["shard_tokens"])
        needed = int(1.1 * self.dtype.itemsize * (todo_tokens + shard_tokens))
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise DataError(
                f"preparing {self.path} takes about {needed / 1e9:.1f} GB more and {free / 1e9:.1f} GB are free: "
                "make room, point data.root to another disk, or take less of the source"
            )

    def _encode_all(self, todo: list[tuple[Unit, _Part]]) -> None:
        with _progress(self.console, sum(unit.n_bytes for unit, _ in todo)) as advance:
            pool = ThreadPoolExecutor(self.workers, thread_name_prefix="encode")
            try:
                futures = {pool.submit(self._encode, unit, part): unit for unit, part in todo}
                for future in as_completed(futures):
                    future.result()
                    advance(futures[future].n_bytes)
            finally:
                pool.shutdown(cancel_futures=True)

    def _encode(self, unit: Unit, part: _Part) -> None:
        lengths, n_bytes = [], []
        with part.tokens_file.open("wb") as file:
            for text in self.source.documents(unit):
                ids = self.tokenizer.encode_document(text)
                file.write(ids.astype(self.dtype).tobytes())
                lengths.append(len(ids))
                n_bytes.append(len(text.encode("utf-8", "replace")))
            file.flush()
            os.fsync(file.fileno())
        unnamed = part.stem.with_suffix(".tmp")
        with unnamed.open("wb") as file:
            np.save(file, np.array([lengths, n_bytes], np.int64))
        unnamed.replace(part.lengths_file)

    def _finish(self, parts: list[_Part]) -> None:
        sizes = [np.load(part.lengths_file) for part in parts]
        lengths = [size[0] for size in sizes]
        n_documents = sum(len(length) for length in lengths)
        val = _val_documents(n_documents, self.settings["val_fraction"], self.settings["split_seed"])
        is_val = np.zeros(n_documents, bool)
        is_val[val] = True
        n_val = int(np.concatenate(lengths)[val].sum())
        if self._n_done("val") != n_val:
            self._write_val(parts, lengths, val)
        self._write_train(parts, lengths, is_val)
        shards = {split: self._describe(split) for split in ("train", "val")}
        counts = {"train": n_documents - len(val), "val": len(val)}
        write_meta(self.path, self._meta(shards, counts, int(sum(size[1].sum() for size in sizes))))

    def _n_done(self, split: str) -> int:
        return sum(file.stat().st_size for file in self.path.glob(f"{split}_*.bin")) // self.dtype.itemsize

    def _write_val(self, parts: list[_Part], lengths: list[np.ndarray], val: np.ndarray) -> None:
        first = np.cumsum([0, *(len(length) for length in lengths)])
        writer = ShardWriter(self.path, "val", self.settings["shard_tokens"], self.dtype, 0)
        for document in val.tolist():
            i = int(np.searchsorted(first, document, "right")) - 1
            ends = lengths[i][: document - first[i] + 1]
            with parts[i].tokens_file.open("rb") as file:
                file.seek(int(ends[:-1].sum()) * self.dtype.itemsize)
                writer.write(np.fromfile(file, self.dtype, int(ends[-1])))
        writer.close()

    def _write_train(self, parts: list[_Part], lengths: list[np.ndarray], is_val: np.ndarray) -> None:
        writer = ShardWriter(self.path, "train", self.settings["shard_tokens"], self.dtype, self._n_done("train"))
        done, end, document = writer.n_finished, 0, 0
        joined: list[tuple[int, Path]] = []
        for part, length in zip(parts, lengths, strict=True):
            kept = ~is_val[document : document + len(length)]
            start, end, document = end, end + int(length[kept].sum()), document + len(length)
            if end > done:
                tokens = part.tokens(self.dtype)[np.repeat(kept, length)]
                writer.write(tokens[max(done - start, 0) :])
            joined.append((end, part.tokens_file))
            while joined and joined[0][0] <= writer.n_finished:
                joined.pop(0)[1].unlink(missing_ok=True)
        writer.close()

    def _describe(self, split: str) -> list[Shard]:
        files = [self.path / shard_name(split, i) for i in range(len(list(self.path.glob(f"{split}_*.bin"))))]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda file: describe(file, self.dtype), files))

    def _meta(self, shards: dict[str, list[Shard]], n_documents: dict[str, int], text_bytes: int) -> dict[str, Any]:
        identity = hashlib.sha256((self.path / TOKENIZER_FILE).read_bytes()).hexdigest()
        return {
            "format": FORMAT,
            **self.settings,
            "tokenizer": {**self.settings["tokenizer"], "sha256": identity},
            "dtype": "uint16" if self.dtype.itemsize == 2 else "uint32",
            "vocab_size": self.tokenizer.vocab_size,
            "eot": self.tokenizer.eot,
            "text_bytes": text_bytes,
            "units": self.units_digest,
            "splits": {split: split_meta(found, n_documents[split]) for split, found in shards.items()},
        }


def _val_documents(n_documents: int, val_fraction: float, split_seed: int) -> np.ndarray:
    """The documents that `datasets.Dataset.train_test_split` would put into its test split, in its order."""
    n_val = math.ceil(val_fraction * n_documents)
    if not 0 < n_val < n_documents:
        raise DataError(f"data.val_fraction={val_fraction} of {n_documents} documents leaves none to train on")
    return np.random.default_rng(split_seed).permutation(n_documents)[:n_val]


def _settings(
    source: Source, tokenizer: Recipe, val_fraction: float, split_seed: int, shard_tokens: int
) -> dict[str, Any]:
    return {
        "source": {"name": source.name, **source.settings},
        "tokenizer": {"name": tokenizer.name, **tokenizer.settings},
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "shard_tokens": shard_tokens,
    }


def _folder_name(settings: Mapping[str, Any]) -> str:
    return f"{settings['source']['name']}-{settings['tokenizer']['name']}-{_digest(settings)[:8]}"


def _is_complete(path: Path) -> bool:
    return (path / META_FILE).is_file() and not (path / PLAN_FILE).is_file()


def _check_unchanged(source: Source, path: Path) -> None:
    if source.may_change and _units_digest(source.units()) != read_meta(path)["units"]:
        raise DataError(
            f"the files of data={source.name} have changed since {path} was prepared: delete that folder to prepare "
            "them as they are now, or train on it as it is"
        )


def _check_settings(val_fraction: float, shard_tokens: int, workers: int | None) -> None:
    if not 0 < val_fraction < 1:
        raise DataError(f"data.val_fraction={val_fraction} must lie in (0, 1)")
    if shard_tokens < 1:
        raise DataError(f"data.shard_tokens={shard_tokens} must be >= 1")
    if workers is not None and workers < 1:
        raise DataError(f"data.workers={workers} must be >= 1, or null for one per core")


def _units_digest(units: Sequence[Unit]) -> str:
    return _digest([repr(unit) for unit in units])


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _sample(source: Source, units: Sequence[Unit], n_bytes: int) -> Iterator[str]:
    """Up to n_bytes of text, an equal share from the beginning of every unit."""
    for unit in units:
        left = n_bytes * unit.n_bytes // sum(unit.n_bytes for unit in units)
        for text in source.documents(unit):
            left -= len(text.encode("utf-8", "replace"))
            if left < 0:
                break
            yield text


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds the lock file; the system frees it when the process ends, however it ends."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is preparing this data set (%s is locked): waiting for it", file)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_full_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"the disk filled up while preparing {path}: make room; the next run continues there"
        ) from error


@contextmanager
def _progress(console: bool, total: int) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = [TextColumn("encoding"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), disable=not console) as bar:
        task = bar.add_task("encoding", total=total)
        yield lambda n_bytes: bar.advance(task, n_bytes)

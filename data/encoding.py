"""Encodes a corpus of documents to a data set, in bounded memory; a killed preparation can be continued.

1. Every unit of the source is encoded to a part: its tokens and the length of each document. Worker threads share the
   units (tiktoken and pyarrow release the GIL, so threads scale like processes, and end with this one). The source's
   files are hashed as they are read, so that later changes can be noticed (identity.py).
2. When all documents are counted they are split as `datasets.train_test_split(test_size=val_fraction, seed)` does:
   the validation set keeps that permutation's order, the training set the source's order. A single document is
   split by position (splitting.py).
3. The parts are concatenated to shards; each part is deleted as soon as its tokens are in complete shards.
4. dataset.json is written last. What a killed run has completed is kept; the result has the same bytes.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data import identity
from data.descriptors import descriptor_budget
from data.errors import DataError
from data.hashing import sha256_of
from data.identity import SourceFile, Status
from data.metadata import DTYPES, Shard, base_meta, shard_name, split_meta
from data.progress import progress
from data.sampling import sample
from data.shards import ShardWriter, write_meta
from data.splitting import train_tokens, usual_fraction, val_documents
from data.text import readable_documents
from data.tokenizers import TOKENIZER_FILE, Tokenizer, read_tokenizer
from data.verified import describe
from files.reading import read_json
from files.writing import write_bytes

if TYPE_CHECKING:
    from data.source import Request, Source, Unit

log = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
PLAN_BYTES = 1 << 20
PARTS = "parts"
MAX_SHARDS = 50_000  # dataset.json describes each of them


def encode_documents(source: "Source", request: "Request") -> None:
    """Writes the data set of a source's documents, or continues it.

    Raises: DataError: if the source, its documents or the disk do not allow it.
    """
    _Encoding(source, request).run()


def is_begun(folder: Path) -> bool:
    """Whether the folder holds what was encoded but not completed, or not cleaned up."""
    return (folder / PLAN_FILE).is_file()


def remove_plan(folder: Path) -> None:
    """Removes what is of no use once the data set in the folder is complete."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    (folder / PLAN_FILE).unlink(missing_ok=True)


@dataclass
class _Part:
    """The encoded documents of one unit; its facts file is written last and kept until the data set is complete."""

    stem: Path
    ends: Sequence[str]  # source files whose last unit this is

    @property
    def tokens_file(self) -> Path:
        return self.stem.with_suffix(".bin")

    @property
    def facts_file(self) -> Path:
        return self.stem.with_suffix(".npz")

    def tokens(self, dtype: np.dtype[Any]) -> np.ndarray:
        return np.fromfile(self.tokens_file, dtype)

    def finish(self, lengths: list[int], **counts: Any) -> None:
        """Writes the facts file: the number of tokens of every document, and the counts."""
        unnamed = self.stem.with_suffix(".tmp")
        with unnamed.open("wb") as file:
            np.savez(file, lengths=np.array(lengths, np.int64), counts=np.array(json.dumps(counts)))
        unnamed.replace(self.facts_file)

    def facts(self) -> "_Facts":
        with np.load(self.facts_file) as saved:
            return _Facts(saved["lengths"], **json.loads(str(saved["counts"])))


@dataclass
class _Facts:
    """The content of a part's facts file."""

    lengths: np.ndarray  # tokens of each document, end of text included
    text_bytes: int
    rows_without_text: int
    files: list[dict[str, Any]]  # the source files whose last unit this is, see identity.SourceFile


@dataclass
class _Encoding:
    """The work of encode_documents."""

    source: "Source"
    request: "Request"
    tokenizer: Tokenizer = field(init=False)
    dtype: np.dtype[Any] = field(init=False)
    files: dict[str, Status] = field(init=False)  # of the source, as they were before reading

    @property
    def folder(self) -> Path:
        return self.request.folder

    def run(self) -> None:
        self.files = {path: identity.look(path) for path in self.source.files()}
        units = list(self.source.units())
        if self.files and (new := [path for unit in units for path in unit.paths if path not in self.files]):
            raise DataError(f"{new[0]} appeared while the corpus was listed: run the same command again")
        self._start_or_continue(units)
        self.tokenizer = self._fit(units)
        self.dtype = DTYPES["uint16" if self.tokenizer.vocab_size <= 1 << 16 else "uint32"]
        parts = self._parts(units)
        todo = [(unit, part) for unit, part in zip(units, parts, strict=True) if not part.facts_file.is_file()]
        self._check_disk(todo)
        self._encode_all(todo)
        self._finish(parts)

    def _parts(self, units: list["Unit"]) -> list[_Part]:
        last = {path: i for i, unit in enumerate(units) for path in unit.paths if path in self.files}
        return [
            _Part(self.folder / PARTS / f"{i:06d}", [path for path in dict.fromkeys(unit.paths) if last.get(path) == i])
            for i, unit in enumerate(units)
        ]

    def _start_or_continue(self, units: list["Unit"]) -> None:
        """Keeps what an earlier run did if it prepared the same documents, else starts anew."""
        for leftover in self.folder.glob(".*"):  # a file that a killed process was writing
            if leftover.is_file():
                leftover.unlink()
        found = identity.digest([*units, *self.files.items()])
        plan = {"settings": self.request.settings, "documents": found}
        plan_file = self.folder / PLAN_FILE
        if plan_file.is_file():
            if _read_plan(plan_file) == plan:
                return
            log.warning(
                "%s is half prepared from other files, or these have changed since: starting afresh", self.folder
            )
        if self.folder.exists():
            shutil.rmtree(self.folder)
        (self.folder / PARTS).mkdir(parents=True)
        write_bytes(plan_file, json.dumps(plan).encode())

    def _fit(self, units: list["Unit"]) -> Tokenizer:
        file = self.folder / TOKENIZER_FILE
        if not file.is_file():
            tokenizer = self.request.recipe.fit(lambda n_bytes: sample(units, self._texts, n_bytes))
            write_bytes(file, json.dumps(tokenizer.to_json()).encode())
        return read_tokenizer(file)

    def _texts(self, unit: "Unit") -> Iterator[str | None]:
        return readable_documents(self.source.documents(unit))

    def _check_disk(self, todo: list[tuple["Unit", _Part]]) -> None:
        if not todo:
            return
        texts = [text[:10_000] for text in islice(self._texts(todo[0][0]), 100) if text is not None]
        n_bytes = sum(len(text.encode()) for text in texts) or 1
        n_tokens = sum(len(self.tokenizer.encode_document(text)) for text in texts)
        todo_tokens = sum(unit.n_bytes for unit, _ in todo) * n_tokens / n_bytes
        # Parts become shards one by one, so both together take at most one shard more than the data set.
        shard_tokens = min(todo_tokens, self.request.settings["shard_tokens"])
        needed = int(1.1 * self.dtype.itemsize * (todo_tokens + shard_tokens))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"preparing {self.folder} takes about {needed / 1e9:.1f} GB more and {free / 1e9:.1f} GB are free: "
                "make room, point data.root to another disk, or take less of the source"
            )

    def _encode_all(self, todo: list[tuple["Unit", _Part]]) -> None:
        with progress(self.request.console, "encoding", sum(unit.n_bytes for unit, _ in todo)) as advance:
            pool = ThreadPoolExecutor(min(self.request.workers, descriptor_budget()), thread_name_prefix="encode")
            try:
                futures = {pool.submit(self._encode, unit, part): unit for unit, part in todo}
                for future in as_completed(futures):
                    future.result()
                    advance(futures[future].n_bytes)
            finally:
                pool.shutdown(cancel_futures=True)

    def _encode(self, unit: "Unit", part: _Part) -> None:
        lengths: list[int] = []
        text_bytes = without_text = 0
        with part.tokens_file.open("wb") as file:
            for text in self._texts(unit):
                if text is None:
                    without_text += 1
                    continue
                ids = self.tokenizer.encode_document(text)
                file.write(ids.astype(self.dtype).tobytes())
                lengths.append(len(ids))
                text_bytes += len(text.encode())
            file.flush()
            os.fsync(file.fileno())
        ended = [asdict(identity.hashed(path, self.files[path])) for path in part.ends]
        part.finish(lengths, text_bytes=text_bytes, rows_without_text=without_text, files=ended)

    def _finish(self, parts: list[_Part]) -> None:
        facts = [part.facts() for part in parts]
        lengths = [fact.lengths for fact in facts]
        n_documents, without_text = sum(map(len, lengths)), sum(fact.rows_without_text for fact in facts)
        if without_text:
            log.warning("%d rows without text were left out (null, empty or blank)", without_text)
        if n_documents == 0:
            raise DataError(f"data={self.source.name} holds no text: nothing to prepare")
        self._check_shards(sum(int(length.sum()) for length in lengths))
        given = self.request.settings["val_fraction"]
        fraction = usual_fraction(n_documents) if given is None else given
        is_one = n_documents == 1
        meta = self._write_by_position(parts, fraction) if is_one else self._write_by_document(parts, lengths, fraction)
        files = {file["path"]: SourceFile(**file) for fact in facts for file in fact.files}
        missing = [path for path in self.files if path not in files]  # that no unit reads, as they are empty
        files |= {path: identity.hashed(path, self.files[path]) for path in missing}
        meta |= {
            "val_fraction": fraction,
            "text_bytes": sum(fact.text_bytes for fact in facts),
            "rows_without_text": without_text,
            "provenance": dict(self.source.provenance()),
            "source_files": identity.write(self.folder, [files[path] for path in self.files]),
        }
        write_meta(self.folder, self._meta() | meta)

    def _check_shards(self, n_tokens: int) -> None:
        if n_tokens > MAX_SHARDS * (shard_tokens := self.request.settings["shard_tokens"]):
            raise DataError(
                f"data.shard_tokens={shard_tokens} would make more than {MAX_SHARDS:,} files of {n_tokens:,} tokens: "
                f"take at least {-(-n_tokens // MAX_SHARDS):,}"
            )

    def _n_done(self, split: str) -> int:
        return sum(file.stat().st_size for file in self.folder.glob(f"{split}_*.bin")) // self.dtype.itemsize

    def _write_by_position(self, parts: list[_Part], val_fraction: float) -> dict[str, Any]:
        tokens = np.concatenate([part.tokens(self.dtype) for part in parts])
        n_train = train_tokens(tokens[:-1], self.tokenizer, val_fraction)
        log.warning(
            "the corpus is one document: split by position, its first %d tokens (%.1f%%) to train on, the other %d to "
            "validate on",
            n_train,
            100 * n_train / (len(tokens) - 1),
            len(tokens) - 1 - n_train,
        )
        for split, piece in (("val", tokens[n_train:]), ("train", np.append(tokens[:n_train], tokens[-1:]))):
            done = self._n_done(split)
            writer = ShardWriter(self.folder, split, self.request.settings["shard_tokens"], self.dtype, done)
            writer.write(piece[done:])
            writer.close()
        return {"split": "by position", "splits": self._splits({"train": 1, "val": 1})}

    def _write_by_document(self, parts: list[_Part], lengths: list[np.ndarray], val_fraction: float) -> dict[str, Any]:
        n_documents = sum(map(len, lengths))
        val = val_documents(n_documents, val_fraction, self.request.settings["split_seed"])
        is_val = np.zeros(n_documents, bool)
        is_val[val] = True
        if self._n_done("val") != int(np.concatenate(lengths)[val].sum()):
            self._write_val(parts, lengths, val)
        self._write_train(parts, lengths, is_val)
        n_of = {"train": n_documents - len(val), "val": len(val)}
        return {"split": "by document", "splits": self._splits(n_of)}

    def _write_val(self, parts: list[_Part], lengths: list[np.ndarray], val: np.ndarray) -> None:
        first = np.cumsum([0, *(len(length) for length in lengths)])
        writer = ShardWriter(self.folder, "val", self.request.settings["shard_tokens"], self.dtype, 0)
        for document in val.tolist():
            i = int(np.searchsorted(first, document, "right")) - 1
            ends = lengths[i][: document - first[i] + 1]
            with parts[i].tokens_file.open("rb") as file:
                file.seek(int(ends[:-1].sum()) * self.dtype.itemsize)
                writer.write(np.fromfile(file, self.dtype, int(ends[-1])))
        writer.close()

    def _write_train(self, parts: list[_Part], lengths: list[np.ndarray], is_val: np.ndarray) -> None:
        writer = ShardWriter(
            self.folder, "train", self.request.settings["shard_tokens"], self.dtype, self._n_done("train")
        )
        done, end, document = writer.n_finished, 0, 0
        copied: list[tuple[int, Path]] = []
        for part, length in zip(parts, lengths, strict=True):
            kept = ~is_val[document : document + len(length)]
            start, end, document = end, end + int(length[kept].sum()), document + len(length)
            if end > done:
                tokens = part.tokens(self.dtype)[np.repeat(kept, length)]
                writer.write(tokens[max(done - start, 0) :])
            copied.append((end, part.tokens_file))
            while copied and copied[0][0] <= writer.n_finished:
                copied.pop(0)[1].unlink(missing_ok=True)
        writer.close()

    def _splits(self, n_documents: Mapping[str, int]) -> dict[str, Any]:
        return {split: split_meta(self._describe(split), n) for split, n in n_documents.items()}

    def _describe(self, split: str) -> list[Shard]:
        files = [self.folder / shard_name(split, i) for i in range(len(list(self.folder.glob(f"{split}_*.bin"))))]
        with ThreadPoolExecutor(min(self.request.workers, descriptor_budget())) as pool:
            return list(pool.map(lambda file: describe(file, self.dtype), files))

    def _meta(self) -> dict[str, Any]:
        sha256 = sha256_of(self.folder / TOKENIZER_FILE)
        return base_meta(self.request.settings, sha256, self.tokenizer.vocab_size, self.tokenizer.eot, self.dtype)


def _read_plan(file: Path) -> dict[str, Any] | None:
    try:
        return read_json(file, most_bytes=PLAN_BYTES)
    except ValueError:
        return None

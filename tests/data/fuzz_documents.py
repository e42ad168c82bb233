"""Prepares random corpora and compares what comes out with what went in.

python tests/data/fuzz_documents.py --n 200 --seed 0

Every case makes files of random texts in random formats, with whatever users' files contain: lone surrogates, control
characters, long runs, byte-order marks, nulls, blank rows, values that are no text, other encodings, links and pipes.
Preparation must either end in a DataError of one line, and only where the case has a reason for one, or in a data set
whose documents are exactly the expected texts, each in one split. The expected texts follow from how the case was made,
not from the project's code.
"""

import argparse
import json
import logging
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without installation

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from corpora import prepared

from data import BPE, Bytes, DataError, Files, TokenDataset, load_tokenizer

PIECES = [
    "word ",
    "ünï",
    "世界",
    "🎉",
    "\0",
    "\x1b[0m",
    "\r\n",
    "\n",
    "\t",
    " ",
    "\ufeff",
    "\u200b",
    "<|endoftext|>",
    "'s",
]
PIECES += ["12345", "====", "\u2028", "\x85", "\U0010ffff", "e\u0301", "$HOME", "~", "\\ud83d", '"', "a" * 30]
SURROGATES = ["\ud83d", "\udc00", "\udfff\ud800"]
RUNS = [" ", "a", "0", "=", "世", "🎉", "\n", " \n", "-_"]
NO_TEXT: list[Any] = [3, 0.5, True, ["a"], {"a": "b"}]


@dataclass
class Case:
    """A corpus, and what preparing it must give."""

    folder: Path
    rng: random.Random
    expected: list[str] = field(default_factory=list)  # documents, in any order
    reasons: list[str] = field(default_factory=list)  # for which a DataError is right

    def text(self) -> str:
        """Anything that may be in a document, lone surrogates apart."""
        kind = self.rng.random()
        if kind < 0.1:
            return self.rng.choice(["", " ", "\n\t ", "\u3000", "\r\n"])
        if kind < 0.15:
            return "x" + self.rng.choice(RUNS) * self.rng.choice([999, 1001, 5000]) + "y"
        return "".join(self.rng.choices(PIECES, k=self.rng.randint(1, 12)))

    def expect(self, text: str | None) -> None:
        """Notes that a row held text; the rule for what is no document is restated here."""
        if text is not None and any(not char.isspace() for char in text):
            self.expected.append(text)

    def write(self) -> None:
        """Makes one to four files, and perhaps links to them."""
        makers = [self.txt, self.jsonl, self.parquet]
        for i in range(self.rng.randint(1, 4)):
            self.rng.choice(makers)(self.folder / self.rng.choice(["", "sub/", "sub/deep er/"]) / f"file {i}")
        if self.rng.random() < 0.3:
            self.link()
        if self.rng.random() < 0.1:
            os.mkfifo(self.folder / "pipe.txt")
        if self.rng.random() < 0.05:
            (self.folder / "notes.md").write_text("no corpus")
            self.reasons.append("unknown kind")

    def txt(self, stem: Path) -> None:
        """A document of its own."""
        path = prepared_parent(stem).with_name(stem.name + ".txt")
        text, kind = self.text(), self.rng.random()
        if kind < 0.1:
            path.write_bytes(text.encode(self.rng.choice(["utf-16", "utf-32"])))
            self.reasons.append("UTF-16 or UTF-32")
            return
        if kind < 0.2:
            path.write_bytes(text.encode() + b"caf\xe9")
            self.reasons.append("Latin-1")
            return
        lone = self.rng.choice(SURROGATES) if kind < 0.3 else ""
        mark = b"\xef\xbb\xbf" if kind > 0.8 or text.startswith("\ufeff") else b""
        raw = (text + lone).encode("utf-8", "surrogatepass")
        path.write_bytes(mark + raw)
        if (mark + raw).count(0) * 4 > len(mark + raw):
            self.reasons.append("mostly NUL bytes")
        self.expect(text + "\ufffd" * len(lone))

    def jsonl(self, stem: Path) -> None:
        """A document per line."""
        lines = []
        for row in self.rows():
            lone = self.rng.choice(SURROGATES) if row is not None and self.rng.random() < 0.1 else ""
            self.expect(None if row is None else "\ufffd" * len(lone) + row)
            lines.append(json.dumps({"id": 1, "text": None if row is None else lone + row}))
        if self.rng.random() < 0.1:
            lines.insert(self.rng.randint(0, len(lines)), json.dumps({"text": self.rng.choice(NO_TEXT)}))
            self.reasons.append("a value that is no text")
        if self.rng.random() < 0.1:
            lines.insert(
                self.rng.randint(0, len(lines)), self.rng.choice(["{", "[1]", '{"txt": "a"}', "3", "[" * 9999])
            )
            self.reasons.append("a line that is no row")
        newline = self.rng.choice(["\n", "\r\n", "\n\n", "\n \n"])
        mark = self.rng.choice(["", "", "\ufeff"])
        end = self.rng.choice(["", newline])
        path = prepared_parent(stem).with_name(stem.name + ".jsonl")
        path.write_bytes((mark + newline.join(lines) + end).encode())

    def parquet(self, stem: Path) -> None:
        """A document per row."""
        rows, kind = self.rows(), self.rng.random()
        path = prepared_parent(stem).with_name(stem.name + ".parquet")
        if kind < 0.1:
            path.write_bytes(b"PAR1 no parquet")
            self.reasons.append("no parquet")
            return
        column_type = self.rng.choice([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
        column = pa.array(rows, column_type)
        if kind < 0.2:
            column = self.rng.choice([pa.array([b"a"]), pa.array([3]), pa.array([["a"]])])
            self.reasons.append("a column that is no text")
        pq.write_table(
            pa.table({"other": [0] * len(column), "text": column}), path, row_group_size=self.rng.randint(1, 5)
        )
        for row in rows:
            self.expect(row)

    def rows(self) -> list[str | None]:
        """Rows of a file, some null."""
        return [None if self.rng.random() < 0.15 else self.text() for _ in range(self.rng.randint(0, 12))]

    def link(self) -> None:
        """More names for what is there."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        kind, source = self.rng.randrange(4), self.rng.choice(files)
        target = self.folder / f"link{source.suffix}"
        if kind == 0:
            target.symlink_to(source)
        elif kind == 1:
            os.link(source, target)
        elif kind == 2:
            (self.folder / "loop").symlink_to(self.folder)
        else:
            target.symlink_to("nowhere")


def prepared_parent(stem: Path) -> Path:
    """stem, whose folder exists."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    return stem


def documents(path: Path, split: str) -> list[str]:
    """The texts between the ends of text."""
    dataset, tokenizer = TokenDataset.open(path, split), load_tokenizer(path)
    ids = dataset.read(np.array([0]), dataset.n_tokens)[0].tolist()
    assert ids[-1] == tokenizer.eot
    found, document = [], list[int]()
    for token in ids:
        if token == tokenizer.eot:
            found.append(tokenizer.decode(document))
            document = []
        else:
            document.append(token)
    return found


def check(root: Path, seed: int) -> str:
    """Prepares the corpus of a seed; what came of it.

    Raises: AssertionError: if that is wrong.
    """
    rng = random.Random(seed)
    case = Case(root / f"{seed}", rng)
    case.folder.mkdir()
    case.write()
    recipe = rng.choice([Bytes(), Bytes(), BPE(280, rng.choice([50, 1e-4]))])
    fraction = rng.choice([None, 0.05, 0.3, 0.9])
    n = len(case.expected)
    if n == 0 or (n > 1 and fraction == 0.9 and -(-9 * n // 10) >= n):
        case.reasons.append("nothing to train on")
    if n == 1 and len(case.expected[0]) < 100:
        case.reasons.append("perhaps one token")
    try:
        path = prepared(
            Files(str(case.folder / "**/*"), "text"),
            root / f"out{seed}",
            recipe,
            workers=rng.randint(1, 3),
            val_fraction=fraction,
            shard_tokens=rng.choice([7, 1000, 10**6]),
        )
    except DataError as error:
        assert case.reasons, f"refused without a reason: {error}"
        assert len(str(error).splitlines()) == 1 and str(error).isprintable(), repr(str(error))
        return "refused"
    assert not set(case.reasons) - {"perhaps one token"}, f"prepared in spite of {case.reasons}"
    train, val = documents(path, "train"), documents(path, "val")
    if n == 1:
        assert train and val and "".join(train + val) == case.expected[0], (train, val, case.expected)
        return "split by position"
    assert Counter(train + val) == Counter(case.expected)
    assert train and val
    return "split by document"


def main(arguments: Sequence[str]) -> int:
    """Tries many seeds; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    outcomes, failed = Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(asked.seed, asked.seed + asked.n):
            try:
                outcomes[check(Path(folder), seed)] += 1
            except Exception as error:
                failed += 1
                print(f"seed {seed}: {type(error).__name__}: {error}"[:1000])
    print(f"{dict(outcomes)}, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Prepares the data set of a configuration: python scripts/prepare_data.py data=openwebtext [data.key=value ...].

Takes the overrides of the training run; those that are not of data change nothing. A prepared data set is left as it
is, an unfinished one continued. Exit status: 0, or 2 if you have to act.
"""

import logging
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs import answer, compose, plug_in, run_help
from data import prepare
from data.shards import read_meta


def main(overrides: list[str]) -> int:
    """Prepares the data set and prints what it holds; returns the exit status, 2 for bad input."""
    return answer(overrides, partial(run_help, __doc__, groups=("data", "data/tokenizer")), _main)


def _main(overrides: list[str]) -> int:
    logging.basicConfig(format="%(message)s")
    data = compose(overrides).data
    source, tokenizer = plug_in(data.source), plug_in(data.tokenizer)
    path = prepare(source, tokenizer, Path(data.root), workers=data.workers, **data.split)
    report(path, read_meta(path), source.verdict(read_meta(path)))
    return 0


def report(path: Path, meta: Mapping[str, Any], verdict: str | None) -> None:
    """Prints what the data set in folder path holds."""
    table = Table("split", "documents", "tokens", "shards", "sha256", title=Text(str(path)))
    for split, found in meta["splits"].items():
        counts = f"{found['n_documents']:,}", f"{found['n_tokens']:,}", str(len(found["shards"]))
        table.add_row(split, *counts, found["checksum"][:16])
    n_tokens = sum(found["n_tokens"] for found in meta["splits"].values())
    console = Console()
    console.print(table)
    density = meta["text_bytes"] and f", {meta['text_bytes'] / n_tokens:.2f} bytes of text per token"
    console.print(f"{meta['vocab_size']:,} token ids{density or ''}")
    for what, value in (meta.get("provenance") or {}).items():
        console.print(f"{what} {value}")
    if verdict is not None:
        console.print(verdict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

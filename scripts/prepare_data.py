"""Prepares the data set of a configuration: python scripts/prepare_data.py data=openwebtext [data.key=value ...]."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table

from configs import compose
from data import DataError, prepare
from data.shards import read_meta


def main(overrides: list[str]) -> int:
    """Prepares and reports; the exit status, 2 if the user has to act."""
    logging.basicConfig(format="%(message)s")
    data = compose(overrides).data
    try:
        source, tokenizer = instantiate(data.source), instantiate(data.tokenizer)
        path = prepare(
            source,
            tokenizer,
            Path(data.root),
            val_fraction=data.val_fraction,
            split_seed=data.split_seed,
            shard_tokens=data.shard_tokens,
            workers=data.workers,
        )
    except (DataError, InstantiationException) as error:
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(reason, DataError):
            raise
        print(f"error: {reason}", file=sys.stderr)
        return 2
    report(path, read_meta(path), source.verdict(read_meta(path)))
    return 0


def report(path: Path, meta: Mapping[str, Any], verdict: str | None) -> None:
    """Prints what the data set in folder path holds."""
    table = Table("split", "documents", "tokens", "shards", "sha256", title=str(path))
    for split, found in meta["splits"].items():
        counts = f"{found['n_documents']:,}", f"{found['n_tokens']:,}", str(len(found["shards"]))
        table.add_row(split, *counts, found["checksum"][:16])
    n_tokens = sum(found["n_tokens"] for found in meta["splits"].values())
    console = Console()
    console.print(table)
    console.print(f"{meta['vocab_size']:,} token ids, {meta['text_bytes'] / n_tokens:.2f} bytes of text per token")
    if verdict is not None:
        console.print(verdict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Data: sources of text, tokenizers, prepared token shards, and the loader that reads them.

sources.py       where documents come from; paths.py: files of a pattern; text.py: from bytes to text
tokenizers.py    text to token ids and back; sampling.py: the text that a tokenizer learns from;
                 tokenizer_file.py: a tokenizer that there is already
preparation.py   from source and tokenizer to a prepared data set; splitting.py: which part is for validation
shards.py        the prepared data set on disk; metadata.py: its dataset.json; verified.py: which files were checked
identity.py      whether the source's files have changed since
loader.py        batches of token windows
hashing.py, descriptors.py, errors.py: what these share

Importing this package is cheap: it imports torch only with the loader, other heavy packages where they are used.
"""

from typing import TYPE_CHECKING, Any

from data.errors import DataError, missing_dataset
from data.identity import warn_if_changed
from data.preparation import dataset_dir, is_prepared, prepare
from data.shards import TokenDataset
from data.sources import Files, OpenWebText, PySource, Synthetic
from data.tokenizer_file import TokenizerFile
from data.tokenizers import BPE, GPT2, Bytes, load_tokenizer, read_tokenizer

if TYPE_CHECKING:
    from data.loader import Batch, TokenLoader, eval_batches

__all__ = [
    "BPE",
    "GPT2",
    "Batch",
    "Bytes",
    "DataError",
    "Files",
    "OpenWebText",
    "PySource",
    "Synthetic",
    "TokenDataset",
    "TokenLoader",
    "TokenizerFile",
    "dataset_dir",
    "eval_batches",
    "is_prepared",
    "load_tokenizer",
    "missing_dataset",
    "prepare",
    "read_tokenizer",
    "warn_if_changed",
]


def __getattr__(name: str) -> Any:
    if name in {"Batch", "TokenLoader", "eval_batches"}:
        from data import loader

        return getattr(loader, name)
    raise AttributeError(f"module 'data' has no attribute {name!r}")

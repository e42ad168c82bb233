"""Data: sources, tokenizers, prepared data sets, and the loader that reads them.

Sources: where tokens come from
source.py        what a source is; a corpus is divided into units of work
embedded.py      the interpreter's own Python files, and made-up text; there without network
text_files.py    .txt, .jsonl, .parquet; opening.py: compressed and remote files; paths.py: files of a pattern
huggingface.py   data sets of the hub or of `datasets`, read by rows.py and parquet.py; openwebtext.py: one of them
token_files.py   tokens that others wrote, read where they lie
mixture.py       prepared data sets with weights

From text to tokens
tokenizers.py    text to token ids and back; gpt2.py: the usual vocabulary; tokenizers_of_others.py: others';
                 tokenizer_file.py: one that there is already
preparation.py   the folder of a data set, filled by its source; in_place.py: tokens that lie elsewhere
encoding.py      from documents to shards; splitting.py: which part is for validation; sampling.py: what a tokenizer
                 learns from; text.py: from bytes to text

A prepared data set
shards.py        the data set on disk; metadata.py: its dataset.json; verified.py: which files were checked
identity.py      whether the source's files have changed since
loader.py        batches of token windows; windows.py: which windows a step reads
hashing.py, descriptors.py, progress.py, errors.py: what these share

Importing this package is cheap: it imports torch only with the loader, other heavy packages where they are used.
"""

from typing import TYPE_CHECKING, Any

from data.embedded import PySource, Synthetic
from data.errors import DataError, missing_dataset
from data.gpt2 import GPT2
from data.huggingface import HuggingFace
from data.identity import warn_if_changed
from data.mixture import Mixture, OfParts
from data.openwebtext import OpenWebText
from data.preparation import dataset_dir, is_prepared, prepare
from data.shards import TokenDataset
from data.text_files import Files
from data.token_files import TokenFiles
from data.tokenizer_file import TokenizerFile
from data.tokenizers import BPE, Bytes, load_tokenizer, read_tokenizer
from data.tokenizers_of_others import Characters, Ids

if TYPE_CHECKING:
    from data.loader import Batch, TokenLoader, eval_batches

__all__ = [
    "BPE",
    "GPT2",
    "Batch",
    "Bytes",
    "Characters",
    "DataError",
    "Files",
    "HuggingFace",
    "Ids",
    "Mixture",
    "OfParts",
    "OpenWebText",
    "PySource",
    "Synthetic",
    "TokenDataset",
    "TokenFiles",
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

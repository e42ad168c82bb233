"""Text that is encoded in memory, to evaluate a model on it as it is: not split, and nothing is written."""

import hashlib
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.metadata import Part
from data.source import Source
from data.text import is_document
from data.tokenizers import Tokenizer


class EncodedText:
    """The documents of a source as one sequence of ids, from which windows are read as from a TokenDataset.

    Each document ends with the end of text. One precedes the first, so that every token of text can be predicted.

    Raises: DataError: if the source has no text.
    """

    split = "text"

    def __init__(self, source: Source, tokenizer: Tokenizer, path: Path) -> None:
        """path: names the source in messages."""
        texts = (text for unit in source.units() for text in source.documents(unit))
        documents = [tokenizer.encode_document(text) for text in texts if is_document(text)]
        if not documents:
            raise DataError(f"{path} holds no text: nothing to evaluate on")
        self.path = path
        self._tokens = np.concatenate([np.array([tokenizer.eot], np.uint32), *documents])
        self.n_tokens = len(self._tokens)
        self.parts = (Part(str(path), self.n_tokens),)
        self.checksum = hashlib.sha256(self._tokens.tobytes()).hexdigest()

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the windows of `length` tokens that begin at starts, (len(starts), length) int64."""
        places = starts.astype(np.int64)[:, None] + np.arange(length)
        windows: np.ndarray = self._tokens[places].astype(np.int64)
        return windows

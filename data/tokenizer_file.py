"""A tokenizer from a file, such as a run's or another data set's, so that token ids stay what they are."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from data.tokenizers import Recipe, Sample, Tokenizer, read_tokenizer
from files.paths import expanded


class TokenizerFile(Recipe):
    """The tokenizer in a tokenizer.json of a run or a prepared data set; nothing in the file is executed."""

    name = "file"

    def __init__(self, path: str) -> None:
        self.path = expanded(path, "data.tokenizer.path")

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        """The content alone: the file may be moved."""
        content = json.dumps(self._read().to_json(), sort_keys=True)
        return {"sha256": hashlib.sha256(content.encode()).hexdigest()}

    @override
    def fit(self, sample: Sample) -> Tokenizer:
        """Returns the tokenizer, for any corpus. Raises: DataError: if there is no such file, or it is damaged."""
        return self._read()

    def _read(self) -> Tokenizer:
        return read_tokenizer(self.path)

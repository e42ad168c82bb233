"""GPT-2's vocabulary: found on this machine, or downloaded."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from data.errors import DataError
from data.tokenizers import BytePairs, Recipe, Sample, Tokenizer, byte_chars
from files.paths import expanded
from files.writing import write_bytes


class GPT2(Recipe):
    """GPT-2's 50257 ids, from the release's vocab.bpe: in vocab_dir, in tiktoken's cache, or downloaded."""

    name = "gpt2"
    url: ClassVar[str] = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
    sha256: ClassVar[str] = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    connect_seconds: ClassVar[float] = 5.0

    def __init__(self, vocab_dir: str | None) -> None:
        self.vocab_dir = vocab_dir

    @override
    def fit(self, sample: Sample) -> Tokenizer:
        """Returns GPT-2's tokenizer, for any corpus.

        Raises: DataError: if the file cannot be found or downloaded, or is another one.
        """
        merges = self._merges().decode().split("\n")[1:-1]  # the first line is the format's version
        to_byte = {char: byte for byte, char in byte_chars().items()}
        tokens = [bytes([byte]) for byte in byte_chars()]
        tokens += [bytes(to_byte[char] for char in merge.replace(" ", "")) for merge in merges]
        return BytePairs(tokens)

    def _merges(self) -> bytes:
        cached = _cache_dir() / hashlib.sha1(self.url.encode()).hexdigest()
        if self.vocab_dir is not None:
            path = expanded(self.vocab_dir) / "vocab.bpe"
            if not path.is_file():
                raise self._unavailable(f"{path} does not exist")
            return self._checked(path.read_bytes(), path)
        if cached.is_file():
            return self._checked(cached.read_bytes(), cached)
        content = self._checked(self._download(), Path("the download"))
        with suppress(OSError):  # if the cache cannot be written, the next use downloads again
            write_bytes(cached, content)
        return content

    def _checked(self, content: bytes, where: Path) -> bytes:
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise DataError(
                f"{where} is not GPT-2's vocab.bpe: expected sha256 {self.sha256[:12]}..., got {found[:12]}... "
                f"({len(content):,} bytes); replace it with {self.url}"
            )
        return content

    def _download(self) -> bytes:
        import requests  # comes with tiktoken

        try:
            answer = requests.get(self.url, timeout=(self.connect_seconds, 30))
            answer.raise_for_status()
        except requests.RequestException as error:
            raise self._unavailable(f"no network ({type(error).__name__})") from error
        return bytes(answer.content)

    def _unavailable(self, reason: str) -> DataError:
        merges = hashlib.sha1(self.url.encode()).hexdigest()
        encoder = hashlib.sha1(self.url.replace("vocab.bpe", "encoder.json").encode()).hexdigest()
        return DataError(
            f"data/tokenizer=gpt2 needs the file vocab.bpe, but {reason}: fetch {self.url} elsewhere and either put it "
            f"into a folder and set data.tokenizer.vocab_dir=<folder>, or save it as {merges} in the folder that "
            f"TIKTOKEN_CACHE_DIR names (encoder.json, there {encoder}, is not needed: the merges fix the ids)"
        )


def _cache_dir() -> Path:
    """Returns the folder of tiktoken's cache."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if folder := os.environ.get(variable):
            return Path(folder)
    return Path(tempfile.gettempdir()) / "data-gym-cache"

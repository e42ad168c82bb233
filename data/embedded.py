"""Sources that are there on any machine: the Python files of the interpreter, and made-up text."""

import os
import platform
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from data.errors import DataError
from data.opening import opened
from data.source import MEGABYTE, Source, Unit, group_files
from data.text import is_document


class PySource(Source):
    """The Python files of the running interpreter: its standard library, then its installed packages.

    Files go by sorted path and the standard library comes first, so the default depends on the interpreter's version
    alone, unless a distribution leaves much of the library out, as Debian does. megabytes caps the text (null:
    everything there). Files that are not UTF-8 are skipped.
    """

    name = "pysource"
    embedded = True

    def __init__(self, megabytes: float | None) -> None:
        if megabytes is not None and not (isinstance(megabytes, int | float) and megabytes > 0):
            raise DataError(f"data.source.megabytes={megabytes} must be > 0, or null for everything")
        self.megabytes = megabytes

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        return {"megabytes": self.megabytes, "python": platform.python_version()}

    @override
    def units(self) -> Sequence[Unit]:
        return group_files(self._sizes())

    @override
    def documents(self, unit: Unit) -> Iterator[str | None]:
        for path in unit.paths:
            with opened(path) as file:
                raw = file.read()
            with suppress(UnicodeDecodeError):
                if is_document(text := raw.decode()):
                    yield text

    @override
    def files(self) -> Sequence[str]:
        return [path for path, _ in self._sizes()]

    def _sizes(self) -> list[tuple[str, int]]:
        budget = float("inf") if self.megabytes is None else self.megabytes * MEGABYTE
        files: list[tuple[str, int]] = []
        for path in _python_files():
            size = Path(path).stat().st_size
            if size > budget:
                break
            budget -= size
            files.append((path, size))
        return files


class Synthetic(Source):
    """Text from a seeded Markov chain over made-up words, each with `branching` equally likely successors.

    The best possible loss is ln(branching) nats per word. Document i depends on (seed, i) alone.
    """

    name = "synthetic"
    embedded = True
    words_per_document: ClassVar[int] = 200

    def __init__(self, n_documents: int, seed: int = 0, n_words: int = 500, branching: int = 4) -> None:
        for key, value in (
            ("n_documents", n_documents),
            ("seed", seed),
            ("n_words", n_words),
            ("branching", branching),
        ):
            if not isinstance(value, int) or not 0 <= value < 1 << 63:
                raise DataError(f"data.source.{key}={value} must be a whole number >= 0")
        if n_documents < 2:
            raise DataError(f"data.source.n_documents={n_documents} must be >= 2: one to train on, one to validate on")
        if not 1 <= branching <= n_words:
            raise DataError(f"data.source.branching={branching} must lie in 1..n_words={n_words}")
        self.n_documents, self.seed, self.n_words, self.branching = n_documents, seed, n_words, branching
        rng = np.random.Generator(np.random.Philox(key=[seed, 2**63]))
        letters = rng.integers(ord("a"), ord("z") + 1, (n_words, 8), dtype=np.uint8)
        lengths = rng.integers(2, 9, n_words)
        self._words = [bytes(row[:n]).decode() for row, n in zip(letters, lengths, strict=True)]
        self._successors = rng.integers(0, n_words, (n_words, branching)).tolist()

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        names = ("n_documents", "seed", "n_words", "branching")
        return {name: getattr(self, name) for name in names}

    @override
    def units(self) -> Sequence[Unit]:
        """Returns the units of the corpus; start and stop are indices of documents."""
        spans = ((start, min(start + 500, self.n_documents)) for start in range(0, self.n_documents, 500))
        size = self.words_per_document * 6
        return [Unit((), start, stop, (stop - start) * size, stop - start) for start, stop in spans]

    @override
    def documents(self, unit: Unit) -> Iterator[str]:
        for index in range(unit.start, unit.stop):
            rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
            word = int(rng.integers(self.n_words))
            chain = [word]
            for choice in rng.integers(0, self.branching, self.words_per_document - 1).tolist():
                word = self._successors[word][choice]
                chain.append(word)
            yield " ".join(self._words[word] for word in chain) + ".\n"


# encodings holds tables of characters, pydoc_data prose in a string: neither is useful Python to learn from.
NOT_STDLIB_CODE = frozenset({"site-packages", "dist-packages", "encodings", "pydoc_data"})


def _python_files() -> Iterator[str]:
    """Yields each real file once: on some systems lib64 is a link to lib."""
    paths = sysconfig.get_paths()
    seen = set()
    real_folder = cache(os.path.realpath)  # of each of its files would take five times as long
    for root in (paths["stdlib"], *sorted({paths["purelib"], paths["platlib"]})):
        for path in _walk(str(Path(root)), prune=NOT_STDLIB_CODE if root == paths["stdlib"] else frozenset()):
            folder, name = os.path.split(path)
            real = f"{real_folder(folder)}{os.sep}{name}"
            if os.path.islink(real):  # noqa: PTH114  # a Path for each of 20,000 files would take three times as long
                real = os.path.realpath(real)
            if real not in seen and os.path.isfile(real):  # noqa: PTH113
                seen.add(real)
                yield path


def _walk(root: str, prune: frozenset[str]) -> list[str]:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in prune]
        # _sysconfigdata*.py records how this interpreter was built.
        found += [
            f"{folder}{os.sep}{name}"
            for name in files
            if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    return sorted(found, key=lambda path: path.removeprefix(root).replace(os.sep, "/"))

"""Samples the text that a tokenizer learns from: as much as is asked for, from all parts of the corpus."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from data.text import beginning

if TYPE_CHECKING:
    from data.source import Unit

# The fraction by which the sample may be smaller than asked for, as characters and shares are rounded.
UNEVEN = 0.01


@dataclass
class _Excerpt:
    """How much of a unit, from its beginning, is in the sample."""

    unit: "Unit"
    documents: int = 0  # taken in full
    characters: int = 0  # of the document after them
    is_all: bool = False

    def more(self, texts: Iterable[str | None], n_bytes: int) -> Iterator[str]:
        """Yields up to n_bytes more of the unit's texts; a longer document is truncated."""
        for text in islice((text for text in texts if text is not None), self.documents, None):
            piece = beginning(text[self.characters :], n_bytes)
            n_bytes -= len(piece.encode())
            if piece:
                yield piece
            if self.characters + len(piece) < len(text):
                self.characters += len(piece)
                return
            self.documents, self.characters = self.documents + 1, 0
            if n_bytes <= 0:
                return
        self.is_all = True


def sample(units: Sequence["Unit"], texts: Callable[["Unit"], Iterable[str | None]], n_bytes: int) -> Iterator[str]:
    """Yields up to n_bytes of text: of every unit its beginning, in proportion to its share of the corpus.

    If a unit has too little text, the next ones give more. If units are empty, because one document spans many of
    them, what is missing at the end is taken from the units that have text left, in equal shares, then from the first
    of them. texts: returns the texts of a unit, in order; None is skipped.
    """
    total, seen, taken = sum(unit.n_bytes for unit in units), 0, 0
    excerpts = [_Excerpt(unit) for unit in units]
    for excerpt in excerpts:
        seen += excerpt.unit.n_bytes
        left = (n_bytes * seen // total if total else n_bytes) - taken
        for piece in excerpt.more(texts(excerpt.unit), left) if left > 0 else ():
            taken += len(piece.encode())
            yield piece
    if n_bytes - taken <= UNEVEN * n_bytes:
        return
    for divides in (True, False):
        rest = [excerpt for excerpt in excerpts if not excerpt.is_all]
        for n, excerpt in enumerate(rest):
            left = (n_bytes - taken) // (len(rest) - n if divides else 1)
            for piece in excerpt.more(texts(excerpt.unit), left) if left > 0 else ():
                taken += len(piece.encode())
                yield piece

"""Turns bytes of a file into the text of a document, by rules that all sources and tokenizers share."""

import re
from collections.abc import Iterable, Iterator
from typing import TypeGuard

from data.errors import DataError

# What \s means to tiktoken and tokenizers: Unicode's White_Space. Python's \s also has U+001C to U+001F.
_SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
_A_SPACE, _NO_SPACE = re.compile(f"[{_SPACE}]"), re.compile(f"[^{_SPACE}]")
UTF8_MARK = b"\xef\xbb\xbf"  # the byte-order mark that some editors write before UTF-8
_OTHER_ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def is_document(text: str | None) -> TypeGuard[str]:
    """Whether text is a document: None (a row without text) and blank text are not."""
    return text is not None and text != "" and not text.isspace()


def readable(text: str) -> str:
    """Returns text with pairs of surrogates combined, and U+FFFD for lone ones, which UTF-8 does not allow."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def decoded(raw: bytes, where: str) -> str:
    """Returns the text of UTF-8 bytes, without a byte-order mark at their beginning; where: names them in errors.

    Raises: DataError: if they are of another encoding.
    """
    if found := [name for mark, name in _OTHER_ENCODINGS if raw.startswith(mark)]:
        raise DataError(f"{where} is {found[0]}: convert it (iconv -f {found[0]} -t UTF-8), or leave it out")
    if raw.count(0) * 4 > len(raw):
        raise DataError(
            f"{where} has {raw.count(0):,} NUL bytes among {len(raw):,}: it is damaged, or UTF-16 without a byte-order "
            "mark; convert it (iconv -f UTF-16LE -t UTF-8), or leave it out"
        )
    text = raw.removeprefix(UTF8_MARK)
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        try:
            return text.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            n = len(raw) - len(text) + error.start
            raise DataError(f"{where} is not UTF-8 at byte {n}: convert it, or leave it out of the pattern") from error


def beginning(text: str, n_bytes: int) -> str:
    """Returns the characters at the beginning of text that fit in n_bytes of UTF-8."""
    return text[:n_bytes].encode()[:n_bytes].decode("utf-8", "ignore")


def split_long_words(text: str, longest: int) -> list[str]:
    """Returns text in pieces, separated only inside words of more than `longest` characters.

    A word is what GPT-2's pattern keeps together: letters, digits, punctuation or white space in a row. Training
    byte pairs takes time quadratic in the length of a word, and tiktoken fails on a million spaces. Each piece is
    encoded as if the others were not there, so the tokens of all other words stay as they are.
    """
    if not _may_have_long_words(text, longest):
        return [text]
    import regex  # type: ignore[import-untyped]  # comes with tiktoken; ships no types
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]  # ships no types

    # At least two characters remain of a word: one apostrophe and the s after it would become another word.
    boundaries = [
        boundary
        for word in regex.finditer(r50k_pat_str, text)
        for boundary in range(word.start() + longest, word.end() - 1, longest)
    ]
    return [text[start:end] for start, end in zip([0, *boundaries], [*boundaries, len(text)], strict=True)]


def _may_have_long_words(text: str, longest: int) -> bool:
    """False if there is certainly none: a long word fills at least one of the blocks of half its length."""
    block = longest // 2
    return any(
        not (_A_SPACE.search(text, i, i + block) and _NO_SPACE.search(text, i, i + block))
        for i in range(0, len(text) - block + 1, block)
    )


def readable_documents(rows: Iterable[str | None]) -> Iterator[str | None]:
    """Yields documents ready to be encoded; None for a row without text."""
    for text in rows:
        yield readable(text) if is_document(text) else None

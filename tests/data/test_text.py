import random

import pytest
import regex

from data import DataError
from data.text import beginning, decoded, is_document, readable, split_long_words

# GPT-2's pattern as published with its encoder.py: the oracle for where words end.
GPT2_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ünïcode 🎉", "plain ünïcode 🎉"),
        ("a\ud83db", "a\ufffdb"),
        ("a\udc00", "a\ufffd"),
        ("\ud83d", "\ufffd"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("\ufeff\ud800", "\ufeff\ufffd"),
        ("", ""),
    ],
)
def test_a_lone_surrogate_is_replaced_and_a_pair_joined(text: str, expected: str) -> None:
    assert readable(text) == expected


@pytest.mark.parametrize("text", [None, "", " ", "\n\t\r\n", "\u3000\xa0\u2028"])
def test_nothing_and_blank_text_are_no_document(text: str | None) -> None:
    assert not is_document(text)


@pytest.mark.parametrize("text", ["x", "\0", "\u200b", "\ufeff", " . "])
def test_text_that_shows_anything_is_a_document(text: str) -> None:
    assert is_document(text)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", ""),
        (b"caf\xc3\xa9\r\n", "café\r\n"),
        (b"\xef\xbb\xbfcaf\xc3\xa9", "café"),
        (b"\xef\xbb\xbf\xef\xbb\xbfa", "\ufeffa"),
        (b"one \0 byte", "one \0 byte"),
        (b"a\xed\xa0\xbdb", "a\ud83db"),
    ],
)
def test_bytes_are_decoded_without_byte_order_mark(raw: bytes, expected: str) -> None:
    assert decoded(raw, "a.txt") == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"caf\xe9", "a.txt is not UTF-8 at byte 3: convert it"),
        (b"\xef\xbb\xbfcaf\xe9", "a.txt is not UTF-8 at byte 6: convert it"),
        ("café".encode("utf-16"), r"a.txt is UTF-16: convert it \(iconv -f UTF-16 -t UTF-8\)"),
        (b"\xfe\xff" + "café".encode("utf-16-be"), "a.txt is UTF-16: convert it"),
        ("café".encode("utf-32"), "a.txt is UTF-32: convert it"),
        ("plain".encode("utf-16-le"), "a.txt has 5 NUL bytes among 10: it is damaged, or UTF-16 without a byte-order"),
        ("plain".encode("utf-16-be"), "a.txt has 5 NUL bytes among 10: it is damaged, or UTF-16 without a byte-order"),
    ],
)
def test_other_encodings_are_refused_by_name(raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decoded(raw, "a.txt")


def test_the_beginning_is_as_long_as_the_bytes_allow_and_of_whole_characters() -> None:
    text = "aé世🎉" * 5
    for n_bytes in range(60):
        piece = beginning(text, n_bytes)
        assert text.startswith(piece)
        assert len(piece.encode()) <= n_bytes
        rest = text[len(piece) :]
        assert not rest or len((piece + rest[0]).encode()) > n_bytes


def runs(rng: random.Random) -> str:
    """Text of short and long runs of all kinds of characters."""
    kinds = [
        "a",
        "Zé",
        "7",
        "٣",
        "世",
        "=",
        "'",
        "-_",
        "🎉",
        " ",
        "\n",
        "\t ",
        "\u3000",
        "\x1c",
        "\0",
        "'s",
        "'ll",
        " x",
    ]
    return "".join(rng.choice(kinds) * rng.choice((1, 1, 2, 3, 9, 10, 11, 12, 40)) for _ in range(30))


@pytest.mark.parametrize("seed", range(60))
def test_only_long_words_are_split(seed: int) -> None:
    longest, text = 10, runs(random.Random(seed))
    pieces = split_long_words(text, longest)
    assert "".join(pieces) == text
    words = [word for piece in pieces for word in GPT2_WORDS.findall(piece)]
    assert max(map(len, words)) <= longest + 1
    found = iter(words)
    for word in GPT2_WORDS.findall(text):
        if len(word) <= longest:
            assert next(found) == word
        else:
            begun = ""
            while len(begun) < len(word):
                begun += next(found)
            assert begun == word


def test_text_without_long_words_stays_whole() -> None:
    text = "an ordinary sentence, with numbers 123456789 and ------ \n\n" * 50
    assert split_long_words(text, 20) == [text]


@pytest.mark.parametrize("start", range(12))
@pytest.mark.parametrize("char", ["a", " ", "\n", "0", "=", "世", "🎉"])
def test_a_word_one_too_long_is_found_wherever_it_begins(start: int, char: str) -> None:
    text = ("a " * 12)[:start] + "." * (char == "a") + char * 13 + "!" * (char != "=") + "tail"
    assert len(split_long_words(text, 10)) == 2


@pytest.mark.parametrize("char", ["a", " ", "\n", "0", "=", "世", "🎉"])
def test_where_a_long_word_is_split_does_not_depend_on_what_follows(char: str) -> None:
    run = "x. " + char * 35
    pieces = split_long_words(run, 10)
    assert len(pieces) == 4
    assert split_long_words(run + "\nmore text", 10)[:3] == pieces[:3]

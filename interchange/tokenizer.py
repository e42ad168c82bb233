"""Hugging Face's files of a byte-level tokenizer: tokenizer.json, vocab.json and merges.txt, tokenizer_config.json.

Ids stay what they are. Bytes are written as GPT-2's printable characters; a vocabulary of plain bytes has no merges.
Words longer than data/tokenizers.py encodes at once (100,000 characters) may be split elsewhere there.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from data.tokenizers import EOT, Tokenizer, byte_chars
from files.errors import ReadingError, shown
from files.reading import read_json
from files.writing import write_json, write_text
from interchange.layout import InterchangeError

MOST_BYTES = 1 << 26


def read(folder: Path) -> dict[int, bytes] | None:
    """Returns the bytes of every token id, by the tokenizer's files in a folder; None if there are none.

    Raises: InterchangeError: if they are damaged.
    """
    file = folder / "tokenizer.json"
    try:
        found = read_json(file, most_bytes=MOST_BYTES, may_be_link=True)
        if found is not None:
            pairs = _listed(found, file)
        else:
            file = folder / "vocab.json"
            vocab = read_json(file, most_bytes=MOST_BYTES, may_be_link=True)
            if vocab is None:
                return None
            pairs = list(vocab.items())
    except ReadingError as error:
        raise InterchangeError(str(error)) from None
    for text, id in pairs:
        if not isinstance(text, str) or type(id) is not int:
            what = f"{shown(text)} to {shown(id)}"
            raise InterchangeError(f"{file} must map texts to whole numbers, not {what}; save the tokenizer again")
    to_byte = {char: byte for byte, char in byte_chars().items()}
    return {id: _bytes(text, to_byte) for text, id in dict(pairs).items()}


def write(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Writes the files. Raises: InterchangeError: if its tokens are not what merging pairs can make."""
    chars = byte_chars()
    tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.eot)]
    if tokenizer.eot_is_text or not {bytes([each]) for each in range(256)} <= set(tokens):
        raise InterchangeError(
            f"GPT-2's tokenizer merges bytes, and cannot express data.tokenizer={tokenizer.kind}; use to=nanogpt, or "
            "train with data/tokenizer=bpe, bytes or gpt2"
        )
    texts = ["".join(chars[byte] for byte in token) for token in tokens]
    vocab = {text: id for id, text in enumerate(texts)}
    merges = [(texts[a], texts[b]) for a, b in _merges(tokens)]
    _library(vocab, merges).save(str(folder / "tokenizer.json"))
    write_text(folder / "vocab.json", json.dumps(vocab | {EOT: tokenizer.eot}, ensure_ascii=False))
    write_text(folder / "merges.txt", "".join(["#version: 0.2\n", *(f"{a} {b}\n" for a, b in merges)]))
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), EOT)
    described = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": block_size, "add_prefix_space": False}
    write_json(folder / "tokenizer_config.json", described | named)


def _listed(found: Mapping[str, Any], file: Path) -> list[tuple[Any, Any]]:
    """The tokens and ids of a tokenizer.json, the added ones last."""
    model, added = found.get("model"), found.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not isinstance(added, list) or not all(isinstance(each, dict) for each in added):
        raise InterchangeError(
            f"{file} must have a model.vocab of texts and ids, as BPE has, and a list of added_tokens; save a BPE "
            "tokenizer, or delete the file if the tokenizer is GPT-2's"
        )
    return [*vocab.items(), *((each.get("content"), each.get("id")) for each in added)]


def _library(vocab: Mapping[str, int], merges: list[tuple[str, str]]) -> Any:
    """The tokenizers library's, as it writes GPT-2's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    found = Tokenizer(models.BPE(dict(vocab), merges))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([AddedToken(EOT, normalized=False, special=True)])
    return found


def _merges(tokens: list[bytes]) -> Iterator[tuple[int, int]]:
    """Which two ids are merged to each token of several bytes, in the order of the merges."""
    ids = {token: id for id, token in enumerate(tokens)}
    for id, token in enumerate(tokens):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            ranks = [ids.get(a + b, id) for a, b in pairwise(parts)]
            if (least := min(ranks)) == id:
                break
            first = ranks.index(least)
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) != 2 or any(part not in ids for part in parts):
            raise InterchangeError(f"token {id} is no pair of earlier tokens, so Hugging Face's BPE cannot have it")
        yield ids[parts[0]], ids[parts[1]]


def _bytes(text: str, to_byte: Mapping[str, int]) -> bytes:
    """What a token stands for; a special one, such as the end of text, for its own name."""
    if all(char in to_byte for char in text):
        return bytes(to_byte[char] for char in text)
    return text.encode(errors="surrogatepass")  # JSON may have half a surrogate pair

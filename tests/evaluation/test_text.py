import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data import DataError, Files
from data.encoded import EncodedText
from data.metadata import SHARES, Part
from data.tokenizers import PlainBytes
from evaluation import EvaluationError
from evaluation.text import TextLoss, text_loss
from model import GPT, LanguageModel
from trainer.metrics import bits_per_byte

TEXTS = ["The first document, as long as it is. " * 3, "Ä short one."]
STREAM = [256, *TEXTS[0].encode(), 256, *TEXTS[1].encode(), 256]
N_BYTES = sum(len(text.encode()) for text in TEXTS)


@pytest.fixture
def text(tmp_path: Path) -> EncodedText:
    for n, each in enumerate(TEXTS):
        (tmp_path / f"{n}.txt").write_text(each, encoding="utf-8")
    pattern = tmp_path / "*.txt"
    return EncodedText(Files(pattern=str(pattern), text="text"), PlainBytes(), pattern)


def gpt(block_size: int) -> GPT:
    torch.manual_seed(0)
    model = GPT(vocab_size=257, n_layer=2, n_head=2, n_embd=16, block_size=block_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def loss(model: LanguageModel, text: EncodedText, n_sequences: int | None = None) -> TextLoss:
    lengths = PlainBytes().byte_lengths()
    return text_loss(model, text, lengths, n_sequences=n_sequences, micro_batch=3, autocast=nullcontext)


def test_a_text_is_encoded_as_it_is_behind_an_end_of_text(text: EncodedText) -> None:
    assert text.read(np.array([0]), text.n_tokens)[0].tolist() == STREAM
    assert text.read(np.array([3, 1]), 2).tolist() == [STREAM[3:5], STREAM[1:3]]


@pytest.mark.parametrize("block_size", [8, 16, 1000])
def test_every_token_is_predicted_once_from_those_before_it_in_its_window(text: EncodedText, block_size: int) -> None:
    model, stream = gpt(block_size), torch.tensor(STREAM)
    expected = 0.0
    for start in range(0, len(stream) - 1, block_size):
        window = stream[start : start + block_size + 1]
        with torch.no_grad():
            expected += float(F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum"))
    found = loss(model, text)
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert (found.n_tokens, found.n_bytes) == (len(STREAM) - 1, N_BYTES)
    assert found.numbers()["perplexity"] == pytest.approx(math.exp(expected / (len(STREAM) - 1)), rel=1e-4)


@pytest.mark.parametrize("block_size", [8, 60, 1000])
def test_of_a_mixture_every_part_is_read_by_itself_and_whole(text: EncodedText, block_size: int) -> None:
    parts = [Part("a", 52, 1000), Part("b", len(STREAM) - 53, SHARES - 1001), Part("c", 1, 1)]
    text.parts = tuple(parts)  # type: ignore[assignment]  # it has one, as no text is a mixture
    model, nats, first = gpt(block_size), 0.0, 0
    for part in parts:
        stream = torch.tensor(STREAM[first : first + part.n_tokens])
        for start in range(0, len(stream) - 1, block_size):
            window = stream[start : start + block_size + 1]
            with torch.no_grad():
                nats += float(F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum"))
        first += part.n_tokens
    found = loss(model, text)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.n_tokens == len(STREAM) - len(parts)


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_per_token(text: EncodedText) -> None:
    model = gpt(16)
    with torch.no_grad():
        model.wte.weight.zero_()  # the head too
    numbers = loss(model, text).numbers()
    assert numbers["nats_per_token"] == pytest.approx(math.log(257))
    assert numbers["bits_per_byte"] == pytest.approx(math.log2(257) * (N_BYTES + len(TEXTS)) / N_BYTES)


def test_some_sequences_are_spread_evenly_and_of_full_length(text: EncodedText) -> None:
    found = loss(gpt(8), text, n_sequences=5)
    assert found.n_tokens == 5 * 8
    assert loss(gpt(8), text, n_sequences=5) == found
    with pytest.raises(DataError, match="evaluation wants 100 sequences of 8 tokens"):
        loss(gpt(8), text, n_sequences=100)


def test_bits_per_byte_is_the_piles() -> None:
    """Gao et al. 2020, section 3.1: (tokens / bytes) log2(e^loss)."""
    assert bits_per_byte(2.5, 4.2) == pytest.approx(1 / 4.2 * math.log2(math.exp(2.5)))
    assert bits_per_byte(2.5, 0.0) is None


def test_nothing_to_evaluate_on_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="empty.txt holds no text: nothing to evaluate on"):
        EncodedText(Files(pattern=str(tmp_path / "empty.txt"), text="text"), PlainBytes(), tmp_path / "empty.txt")


def test_a_single_token_cannot_be_predicted(text: EncodedText) -> None:
    text.n_tokens, text.parts = 1, (Part("a", 1),)
    with pytest.raises(EvaluationError, match="has 1 tokens; it takes two to predict one"):
        loss(gpt(8), text)

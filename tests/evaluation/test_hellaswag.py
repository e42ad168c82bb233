import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from data.tokenizers import PlainBytes
from evaluation import EvaluationError
from evaluation.hellaswag import STYLES, hellaswag, log_likelihoods
from files.errors import ReadingError
from model import GPT

# Made up, in the form of the authors' file.
ROWS: list[dict[str, Any]] = [
    {
        "ind": 24,
        "activity_label": "Washing a dog",
        "ctx_a": "A dog stands in a tub.",
        "ctx_b": "it",
        "ctx": "A dog stands in a tub. it",
        "split": "val",
        "split_type": "indomain",
        "label": 2,
        "endings": ["sings.", "reads a long book about the sea.", "is washed.", "flies away over the roofs."],
        "source_id": "activitynet~v_1",
    },
    {
        "ind": 25,
        "activity_label": "Home and Garden",
        "ctx_a": "[header] How to sow [title] Buy seeds. [step] They should be fresh. ",
        "ctx_b": "",
        "ctx": "[header] How to sow [title] Buy seeds. [step] They should be fresh. ",
        "split": "val",
        "split_type": "zeroshot",
        "label": 0,
        "endings": ["Sow  them. [substeps] Water them.", "Eat.", "Wait for a year.", "Sell the garden, ä."],
        "source_id": "wikihow~2",
    },
]
# As lm-evaluation-harness writes them: activity, context with a capital in ctx_b, no marks.
HARNESS = [
    ("Washing a dog: A dog stands in a tub. It", ROWS[0]["endings"]),
    # ". " stands for " [title]"; of a mark its blanks stay, two of which become one.
    (
        "Home and Garden: How to sow. Buy seeds. They should be fresh.",
        ["Sow them. Water them.", "Eat.", "Wait for a year.", "Sell the garden, ä."],
    ),
]
LLM_C = [(row["ctx"], row["endings"]) for row in ROWS]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "hellaswag_val.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))  # without a line end behind the last
    return path


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    found = GPT(vocab_size=257, n_layer=2, n_head=2, n_embd=16, block_size=128).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.3)
    return found


def log_likelihood(model: GPT, context: str, ending: str) -> float:
    """Of one ending, alone in its batch."""
    ids, n = torch.tensor([[*context.encode(), *ending.encode()]]), len(ending.encode())
    with torch.no_grad():
        logits = model(ids[:, :-1])[0]
    return -float(F.cross_entropy(logits[-n:], ids[0, -n:], reduction="sum"))


def share(predicted: list[int]) -> float:
    return sum(each == row["label"] for each, row in zip(predicted, ROWS, strict=True)) / len(ROWS)


@pytest.mark.parametrize("labels", [(2, 0), (0, 1), (1, 3)])
@pytest.mark.parametrize("style", STYLES)
def test_accuracies_are_those_of_endings_scored_one_by_one(
    file: Path, model: GPT, monkeypatch: pytest.MonkeyPatch, style: str, labels: tuple[int, int]
) -> None:
    for row, label in zip(ROWS, labels, strict=True):
        monkeypatch.setitem(row, "label", label)
    file.write_text("\n".join(map(json.dumps, ROWS)))
    plain, normed = [], []
    for context, endings in LLM_C if style == "llm.c" else HARNESS:
        # A byte is a token, so llm.c divides by bytes, the blank before an ending among them.
        lengths = [len(f" {each}".encode()) if style == "llm.c" else len(each) for each in endings]
        scores = [log_likelihood(model, context, f" {each}") for each in endings]
        plain.append(max(range(4), key=lambda n: scores[n]))
        normed.append(max(range(4), key=lambda n: scores[n] / lengths[n]))
    found = hellaswag(model, PlainBytes(), file, style=style, limit=None, autocast=nullcontext)
    assert (found["acc"], found["acc_norm"], found["questions"]) == (share(plain), share(normed), 2)


@pytest.mark.parametrize("style", STYLES)
def test_endings_are_encoded_as_the_style_has_them(style: str) -> None:
    for row, (context, endings) in zip(ROWS, LLM_C if style == "llm.c" else HARNESS, strict=True):
        for found, ending in zip(STYLES[style](row, PlainBytes()), endings, strict=True):
            assert bytes(found.ids).decode() == f"{context} {ending}"
            assert bytes(found.ids[-found.n :]).decode() == f" {ending}"


def test_padding_and_a_batch_change_no_log_likelihood(model: GPT) -> None:
    endings = list(STYLES["llm.c"](ROWS[0], PlainBytes()))
    together = log_likelihoods(model, endings, nullcontext)
    alone = torch.cat([log_likelihoods(model, [each], nullcontext) for each in endings])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


def test_of_a_text_longer_than_a_block_the_end_is_scored(model: GPT) -> None:
    row = ROWS[0] | {"ctx": "x" * 500 + ROWS[0]["ctx"]}
    ending = next(STYLES["llm.c"](row, PlainBytes()))
    ids = torch.tensor([ending.ids[-129:]])
    with torch.no_grad():
        expected = -F.cross_entropy(model(ids[:, :-1])[0, -ending.n :], ids[0, -ending.n :], reduction="sum")
    torch.testing.assert_close(log_likelihoods(model, [ending], nullcontext)[0].float(), expected)


def test_the_standard_error_is_that_of_a_share(file: Path, model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("".join(json.dumps(ROWS[0] | {"label": label}) + "\n" for label in (0, 1, 2, 3)))
    found = hellaswag(model, PlainBytes(), file, style="llm.c", limit=None, autocast=nullcontext)
    assert found["acc"] == 0.25  # the same answer four times, right once
    assert found["acc_stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    first = hellaswag(model, PlainBytes(), file, style="llm.c", limit=1, autocast=nullcontext)
    assert (first["questions"], first["acc_stderr"]) == (1, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({**ROWS[0], "label": ""}), "label must be 0 to 3, got ; the test split has none"),
        (json.dumps({**ROWS[0], "label": 4}), "line 2: label must be 0 to 3, got 4"),
        (json.dumps({**ROWS[0], "endings": ["a"]}), "line 2: endings must be a list of 4 texts"),
        (json.dumps({"text": "a"}), "line 2: activity_label must be a text, as in hellaswag_val.jsonl, got null"),
        ("[1]", "line 2 must hold a JSON object"),
        ("{", "line 2 is no JSON"),
    ],
)
def test_a_line_that_is_no_question_is_named(file: Path, model: GPT, line: str, message: str) -> None:
    file.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises((EvaluationError, ReadingError), match=message):
        hellaswag(model, PlainBytes(), file, style="llm.c", limit=None, autocast=nullcontext)


def test_a_missing_file_says_where_it_is_from(tmp_path: Path, model: GPT) -> None:
    for name, content, message in (
        ("none", None, "does not exist; the file is data/hellaswag_val.jsonl of github.com/rowanz/hellaswag"),
        ("empty", "\n", "holds no questions"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(EvaluationError, match=message):
            hellaswag(model, PlainBytes(), tmp_path / name, style="llm.c", limit=None, autocast=nullcontext)

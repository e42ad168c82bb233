"""HellaSwag (Zellers et al. 2019, arXiv:1905.07830): which of four endings continues a text, from the authors' file.

The model takes the ending that is likeliest by itself. Two ways to ask are in use, and their numbers do not compare:

lm-eval   lm-evaluation-harness's: the activity precedes the context, marks of WikiHow are removed; acc_norm divides an
          ending's log-likelihood by its characters. GPT-2 124M: acc 0.2892, acc_norm 0.3114.
llm.c     Karpathy's, of build-nanogpt and modded-nanogpt too: the context as it is; acc_norm divides by the ending's
          tokens. GPT-2 124M: acc 0.2859, acc_norm 0.2955.
Both figures are those that llm.c's dev/data/hellaswag.py reports of all 10,042 questions of hellaswag_val.jsonl.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.tokenizers import Tokenizer
from evaluation.errors import EvaluationError
from evaluation.text import Autocast
from files.errors import shown
from files.reading import MIB, parse_object, read_text
from model import LanguageModel

N_ENDINGS = 4
MOST_BYTES = 1024 * MIB  # hellaswag_train.jsonl has 46 MiB
TEXTS = ("activity_label", "ctx_a", "ctx_b", "ctx")


class Ending(NamedTuple):
    """A possible continuation, encoded. ids: context and ending. n: how many of them are the ending's."""

    ids: Sequence[int]
    n: int
    length: int  # what acc_norm divides by


def harness_endings(row: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Ending]:
    """Yields the endings of a question as lm-evaluation-harness asks it."""
    context = _without_marks(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    spaces = context[len(context.rstrip()) :]  # belong to the ending, as GPT-2's tokens begin with a space
    context = context.rstrip()
    n_context = len(tokenizer.encode(context))
    for ending in map(_without_marks, row["endings"]):
        ids = tokenizer.encode(f"{context}{spaces} {ending}")
        yield Ending(ids, len(ids) - n_context, len(ending))


def llm_c_endings(row: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Ending]:
    """Yields the endings of a question as llm.c asks it."""
    context = tokenizer.encode(row["ctx"])
    for ending in row["endings"]:
        ids = tokenizer.encode(f" {ending}")
        yield Ending([*context, *ids], len(ids), len(ids))


STYLES: dict[str, Callable[[dict[str, Any], Tokenizer], Iterator[Ending]]] = {
    "lm-eval": harness_endings,
    "llm.c": llm_c_endings,
}


def hellaswag(
    model: LanguageModel, tokenizer: Tokenizer, path: Path, *, style: str, limit: int | None, autocast: Autocast
) -> dict[str, float | None]:
    """Returns acc, acc_norm, their standard errors and the number of questions. limit: takes the first ones alone.

    Raises: EvaluationError, ReadingError: if the file at path holds anything but questions with labels.
    """
    right, right_norm, n = 0, 0, 0
    for row in islice(read_questions(path), limit):
        endings = list(STYLES[style](row, tokenizer))
        found = log_likelihoods(model, endings, autocast)
        lengths = torch.tensor([max(ending.length, 1) for ending in endings], dtype=found.dtype)
        right += int(found.argmax()) == row["label"]
        right_norm += int((found / lengths).argmax()) == row["label"]
        n += 1
    if not n:
        raise EvaluationError(f"hellaswag={path} holds no questions")
    shares = {"acc": right / n, "acc_norm": right_norm / n}
    errors = {f"{name}_stderr": math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None for name, p in shares.items()}
    return {**shares, **errors, "questions": n}


@torch.no_grad()
def log_likelihoods(model: LanguageModel, endings: Sequence[Ending], autocast: Autocast) -> Tensor:
    """Returns the log-likelihood of each ending after its context, in nats, (len(endings),) fp64 on the CPU.

    Of a text of more than block_size tokens the beginning is left out.
    """
    device = next(model.parameters()).device
    rows = [torch.tensor(ending.ids[-model.block_size - 1 :]) for ending in endings]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)  # behind, where no token sees it
    with autocast():
        logits = model(padded[:, :-1])
    found = logits.float().log_softmax(-1).gather(-1, padded[:, 1:, None]).squeeze(-1).double().cpu()  # (B, T - 1)
    ends = [len(row) - 1 for row in rows]
    sums = [each[max(end - ending.n, 0) : end].sum() for each, end, ending in zip(found, ends, endings, strict=True)]
    return torch.stack(sums)


def read_questions(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the questions of a hellaswag_*.jsonl, checked.

    Raises: EvaluationError: if there is no such file, or a line is no question with a label. ReadingError.
    """
    text = read_text(path, most_bytes=MOST_BYTES, may_be_link=True)
    if text is None:
        raise EvaluationError(
            f"hellaswag={path} does not exist; the file is data/hellaswag_val.jsonl of github.com/rowanz/hellaswag"
        )
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _checked(parse_object(line.encode(), f"{path}, line {number}"), f"{path}, line {number}")


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    for name in TEXTS:
        if not isinstance(row.get(name), str):
            raise EvaluationError(
                f"{where}: {name} must be a text, as in hellaswag_val.jsonl, got {shown(row.get(name))}"
            )
    endings = row.get("endings")
    if not (isinstance(endings, list) and len(endings) == N_ENDINGS and all(isinstance(e, str) for e in endings)):
        raise EvaluationError(f"{where}: endings must be a list of {N_ENDINGS} texts, got {shown(endings)}")
    if row.get("label") not in range(N_ENDINGS) or isinstance(row["label"], bool):
        raise EvaluationError(
            f"{where}: label must be 0 to {N_ENDINGS - 1}, got {shown(row.get('label'))}; the test split has none, use "
            "hellaswag_val.jsonl"
        )
    return row


def _without_marks(text: str) -> str:
    """The text without WikiHow's marks such as [step], as lm-evaluation-harness removes them."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

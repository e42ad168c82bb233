import builtins
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from data.tokenizers import PlainBytes, byte_chars
from evaluation import EvaluationError
from evaluation.harness import harness, metrics_of
from evaluation.hellaswag import hellaswag
from model import GPT
from tests.evaluation.test_hellaswag import ROWS
from tests.model.test_gpt import hugging_face


def test_without_the_harness_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == "lm_eval":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EvaluationError, match=r"tasks= needs lm-evaluation-harness: pip install -e '.\[eval\]'"):
        harness(tmp_path, ["hellaswag"], limit=None, micro_batch=1, device="cpu")


def test_metrics_are_named_by_task_and_filter() -> None:
    results = {
        "hellaswag": {"alias": "hellaswag", "acc,none": 0.3, "acc_stderr,none": 0.01, "sample_len": 10},
        "gsm8k": {"exact_match,strict-match": 0.0, "exact_match_stderr,strict-match": "N/A"},
    }
    assert metrics_of(results) == {
        "hellaswag/acc": 0.3,
        "hellaswag/acc_stderr": 0.01,
        "gsm8k/exact_match,strict-match": 0.0,
    }


def exported(model: GPT, folder: Path) -> None:
    """Writes the model in Hugging Face's format, with a tokenizer whose ids are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    hugging_face(model).save_pretrained(folder)
    vocabulary = {char: byte for byte, char in byte_chars().items()} | {"<|endoftext|>": 256}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)


@pytest.mark.slow  # imports the harness
def test_hellaswag_is_what_the_harness_says_of_the_exported_model(tmp_path: Path) -> None:
    utils = pytest.importorskip("lm_eval.tasks.hellaswag.utils")
    torch.manual_seed(0)
    model = GPT(vocab_size=257, n_layer=2, n_head=2, n_embd=32, block_size=128, vocab_multiple=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    exported(model, tmp_path / "model")
    # All four labels, so that each answer is right once.
    path, rows = tmp_path / "rows.jsonl", [row | {"label": label} for row in ROWS for label in (0, 1, 1, 2, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "hellaswag_of_a_file",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(path)}, "cache_dir": str(tmp_path / "cache")},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "process_docs": utils.process_docs,
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "choices",
    }
    theirs = harness(tmp_path / "model", [task], limit=None, micro_batch=4, device="cpu")  # type: ignore[list-item]
    ours = hellaswag(model, PlainBytes(), path, style="lm-eval", limit=None, autocast=nullcontext)
    for name in ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr"):
        assert theirs[f"hellaswag_of_a_file/{name}"] == pytest.approx(ours[name], abs=1e-4), name


def test_a_folder_without_a_model_names_the_export(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(EvaluationError, match="is no model in Hugging Face's format: it has no config.json"):
        harness(tmp_path, ["hellaswag"], limit=None, micro_batch=1, device="cpu")

"""CurvatureCallback in Hugging Face's Trainer itself, which needs accelerate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_curvature_pass import V, gpt2
from torch import nn
from torch.utils.data import Dataset

from optim import CurvatureCallback, CurvaturePass, GaussNewtonBartlett, Sophia

pytestmark = pytest.mark.slow
pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate, which is not installed")
transformers = pytest.importorskip("transformers")


class Sentences(Dataset[dict[str, torch.Tensor]]):
    """Of 7 tokens, the last two of which do not count in every other one."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(V, (7,), generator=torch.Generator().manual_seed(index))
        labels = tokens.clone()
        labels[5:] = -100 if index % 2 else labels[5:]
        return {"input_ids": tokens, "labels": labels}


def sophia(model: nn.Module) -> Sophia:
    return Sophia(model.parameters(), lr=0.01, curvature=GaussNewtonBartlett(every=2))


def trainer(model: nn.Module, folder: Path, **settings: Any) -> Any:
    """Of two micro-batches in a step, whose gradient is that of the mean over all labels of the step."""
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    callbacks, optimizers = [CurvatureCallback(seed=4)], (sophia(model), None)
    return transformers.Trainer(model, arguments, train_dataset=Sentences(), optimizers=optimizers, callbacks=callbacks)


def test_trainer_takes_the_steps_of_a_plain_loop(tmp_path: Path) -> None:
    model, seen = gpt2(), []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    trainer(model, tmp_path, max_steps=5, save_strategy="no").train()
    hook.remove()
    micro_batches = [each for each in seen if "num_items_in_batch" in each]  # not those of the passes
    assert len(micro_batches) == 10 and len(seen) > 10
    plain = gpt2()
    optimizer = sophia(plain)
    curvature = CurvaturePass(plain, optimizer, seed=4)
    for step in range(5):
        of_step = micro_batches[2 * step : 2 * step + 2]
        curvature.update(*of_step)
        for each in of_step:
            plain(**each).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, param in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), param, rtol=1e-5, atol=1e-7)
    assert not model._forward_pre_hooks  # the callback's is gone, too


def test_a_resumed_trainer_ends_like_one_that_was_not_interrupted(tmp_path: Path) -> None:
    straight, again = gpt2(), gpt2()
    trainer(straight, tmp_path, max_steps=5, save_steps=3).train()
    trainer(again, tmp_path, max_steps=5, save_strategy="no").train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-3")
    )
    for name, param in straight.named_parameters():
        assert torch.equal(again.get_parameter(name), param), name

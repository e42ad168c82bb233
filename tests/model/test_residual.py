"""model.bf16_residual, of every architecture."""

import pytest
import torch
from torch import Tensor

from model import GPT, LanguageModel
from model.llama import Llama


def loss_and_gradients(
    architecture: type[LanguageModel], is_narrow: bool, precision: torch.dtype
) -> tuple[Tensor, Tensor, set[torch.dtype]]:
    torch.manual_seed(0)
    model = architecture(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=50, bf16_residual=is_narrow)
    streams: set[torch.dtype] = set()
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: streams.update((inputs[0].dtype, output.dtype)))
    tokens = torch.randint(50, (4, 33))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(grads), streams


@pytest.mark.parametrize("architecture", [GPT, Llama])
def test_it_narrows_the_stream_of_a_bf16_run_alone(architecture: type[LanguageModel]) -> None:
    exact, slope, wide = loss_and_gradients(architecture, True, torch.float32)
    usual = loss_and_gradients(architecture, False, torch.bfloat16)
    found = loss_and_gradients(architecture, True, torch.bfloat16)
    assert (wide, usual[2], found[2]) == ({torch.float32}, {torch.float32}, {torch.bfloat16})
    errors = [float((each[1] - slope).norm() / slope.norm()) for each in (usual, found)]
    assert found[0] == pytest.approx(exact, rel=2**-10)
    assert errors[1] < 2 * errors[0] and errors[1] < 2**-5

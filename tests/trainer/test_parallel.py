"""Strategies, in this process and, where they need peers, on real ranks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import laws
import pytest
import torch
import world
from laws import G, T, V
from torch import Tensor

from assembly.data import open_data
from assembly.run import Run, validation_batches
from configs import compose
from data import Batch
from trainer.parallel import DDP, FSDP2, Single, Strategy

SETTINGS: dict[str, Any] = {"device": torch.device("cpu"), "precision": "fp32", "compiled": False}


def batch() -> Batch:
    tokens = torch.randint(0, V, (2, G, T), generator=torch.Generator().manual_seed(1))
    return Batch(tokens[0], tokens[1], range(G))


def gradients(strategy: Strategy, how: str = "none", dropout: float = 0.0) -> dict[str, Tensor]:
    model = laws.gpt()
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = dropout
    strategy.prepare(model, list(model.h), how)
    torch.manual_seed(7)
    strategy.forward_backward([batch()], laws.loss_of, G)
    strategy.close()
    return {name: strategy.full_tensor(p.grad) for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("how", ["selective", "full"])
def test_checkpointed_activations_change_no_gradient(how: str) -> None:
    expected, found = gradients(Single(**SETTINGS), dropout=0.3), gradients(Single(**SETTINGS), how, dropout=0.3)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())


def test_checkpointed_activations_are_not_kept() -> None:
    def kept(how: str) -> int:
        sizes: list[int] = []
        strategy, model = Single(**SETTINGS), laws.gpt(n_layer=4)
        strategy.prepare(model, list(model.h), how)

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            laws.loss_of(model, batch())
        return sum(sizes)

    assert kept("full") < kept("none") / 2


def test_a_launchers_processes_are_not_left_to_train_each_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="parallel=single, but 2 processes were started; use parallel=ddp"):
        Single(**SETTINGS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDP(compression="fp4", **SETTINGS), "parallel.compression='fp4' must be one of null, bf16, powersgd"),
        (lambda: DDP(compression="bf16", **SETTINGS), "parallel.compression=bf16 needs CUDA devices"),
        (lambda: FSDP2(mesh=[2, 2], **SETTINGS), r"parallel.mesh=\[2, 2\] must be .*, of 1 ranks in all"),
        (lambda: FSDP2(mesh=[1], **SETTINGS), r"parallel.mesh=\[1\] must be \[copies, ranks per copy\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class TensorParallel(Single):
    """Rank 3 of 4, where two ranks at a time compute the same sequences."""

    data_rank, data_ranks = 1, 2


def test_loader_and_evaluation_read_the_share_of_the_data_rank(tiny: list[str], tmp_path: Path) -> None:
    config = compose([*tiny, f"run_dir={tmp_path}"])
    strategy = TensorParallel(**SETTINGS)
    _, val_data, loader = open_data(config, strategy)
    read = [list(batch.indices) for batch in loader.batches(0)]
    loader.close()
    assert read == [[4, 5, 6, 7]]  # of a global batch of 8
    run = SimpleNamespace(config=config, strategy=strategy, val_data=val_data, model=laws.gpt())
    assert [list(batch.indices) for batch in validation_batches(cast(Run, run))] == [
        [4, 5]
    ]  # of 6, in micro-batches of 4


@pytest.mark.xdist_group("ranks")
def test_every_rank_reads_its_own_share_also_where_parameters_are_replicated() -> None:
    assert world.run(2, laws.shares, "hsdp") == [(0, 2), (1, 2)]


@pytest.mark.parametrize("kind", [DDP, FSDP2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_launcher_a_strategy_is_a_world_of_one(kind: type[Strategy], precision: str) -> None:
    settings = SETTINGS | {"precision": precision}
    expected, found = gradients(Single(**settings)), gradients(kind(**settings))
    for name, grad in expected.items():
        if precision == "fp32":
            assert torch.equal(found[name], grad), name
        else:  # FSDP2 rounds a block's parameters to bf16, 2^-9, before autocast would
            assert (found[name] - grad).norm() <= 0.05 * grad.norm() + 1e-6, name


@pytest.mark.xdist_group("ranks")
def test_compression_changes_gradients_and_never_curvature() -> None:
    plain, low_rank = (world.run(2, laws.compressed, how)[0] for how in (None, "powersgd"))
    name = "wte.weight"
    assert not torch.equal(low_rank["gradients"][name], plain["gradients"][name])
    assert (
        torch.nn.functional.cosine_similarity(
            low_rank["gradients"][name].flatten(), plain["gradients"][name].flatten(), dim=0
        )
        > 0.5
    )
    for name, grad in plain["gradients"].items():
        assert torch.equal(low_rank["extra"][name], plain["extra"][name])
        assert torch.allclose(plain["extra"][name], grad, rtol=1e-5, atol=1e-7)


@pytest.mark.xdist_group("ranks")
def test_ranks_agree_on_what_only_one_of_them_knows() -> None:
    for rank, found in enumerate(world.run(3, laws.told)):
        assert found["gathered"] == [0, 10, 20]
        assert found["from main"] == 0
        assert found["error"] == "rank 0 says no"
        assert found["order"] == ["main"] if rank == 0 else found["order"] == [rank]
        assert found["votes"] == [False, False, True, False]  # rank 1's, of the second call

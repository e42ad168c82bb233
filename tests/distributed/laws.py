"""What ranks do in tests of the laws; their processes import it.

A model small enough for milliseconds, whose rows divide evenly among neither 2, 3 nor 4 ranks.
"""

import math
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from configs import compose
from data import Batch
from data.loader import PADDING
from model import GPT, LanguageModel, Llama
from optim import Sophia
from optim.build import build
from optim.ensemble import OptimizerSet
from optim.sharding import local
from trainer import parallel
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.parallel import DDP, FSDP2, Single, Strategy

MATRIX_METHODS = ("adapprox", "coap", "coap_adafactor", "flora", "galore", "shampoo", "soap")
SENSITIVE = ("adapprox", "muon", "shampoo", "soap")  # to the last bits of gradients
INTERVALS = ("every", "precondition_frequency", "update_interval", "svd_factor", "kappa", "rank_interval")
G, T, V = 12, 5, 11
Outcome = dict[str, Tensor] | str  # parameters by name, or the traceback of what went wrong


def config(option: str) -> dict[str, Any]:
    """The option's settings, with intervals of 3 steps."""
    found: Any = compose([f"optim={option}"]).optim
    for node in _nodes(found):
        node |= {key: 3 for key in INTERVALS if key in node}
    return dict(found)


def gpt(n_layer: int = 2, n_embd: int = 8, *, bias: bool = True) -> GPT:
    """The model, the same everywhere."""
    torch.manual_seed(0)
    return GPT(vocab_size=V, n_layer=n_layer, n_head=2, n_embd=n_embd, block_size=T, bias=bias)


def llama() -> LanguageModel:
    """Another architecture, the same everywhere."""
    torch.manual_seed(0)
    return Llama(vocab_size=V, n_layer=2, n_head=2, n_kv_head=1, n_embd=8, block_size=T)


ARCHITECTURES: dict[str, Callable[[], LanguageModel]] = {"gpt": partial(gpt, bias=False), "llama": llama}


def open_strategy(placement: str) -> Strategy:
    """Of this process, among its ranks; "hsdp" is a mesh of two copies."""
    settings: dict[str, Any] = {"device": torch.device("cpu"), "precision": "fp32", "compiled": False}
    if placement == "single":
        return Single(**settings)
    if placement == "ddp":
        return DDP(**settings, timeout_seconds=30)
    mesh = [2, int(os.environ["WORLD_SIZE"]) // 2] if placement == "hsdp" else None
    return FSDP2(mesh=mesh, **settings, timeout_seconds=30)


def placed(strategy: Strategy, option: str, model: LanguageModel) -> OptimizerSet:
    """The option's optimizers for the model, which the strategy shards."""
    roles = model.roles()
    strategy.prepare(model, model.blocks)
    return build(config(option), dict(model.named_parameters()), roles, seed=1, global_batch=G, group=strategy.group)


def steps_with_given_gradients(model: LanguageModel, optimizer: OptimizerSet, first: int, last: int) -> None:
    """Steps first to last - 1, with gradients (and curvature) that are random tensors of (step, parameter) alone."""
    for step in range(first, last):
        for n, param in enumerate(model.parameters()):
            param.grad = _like(param, _random(param, step, n))
        for member in optimizer.optimizers:
            if isinstance(member, Sophia):
                own = [p for group in member.param_groups for p in group["params"]]
                member.update_curvature({p: _like(p, _random(p, step, n).square()) for n, p in enumerate(own)})
        _set_lr(optimizer, step)
        optimizer.step(measured=True)
        optimizer.diagnostics()
        optimizer.zero_grad()


def steps_of_training(
    strategy: Strategy, model: LanguageModel, optimizer: OptimizerSet, steps: int, noise: float = 0.0
) -> list[float]:
    """Steps as train.py does them; the losses. noise: relative, on every gradient."""
    losses = []
    for step in range(steps):
        tokens = torch.randint(0, V, (2, G, T), generator=torch.Generator().manual_seed(step))
        share = G // strategy.data_ranks
        start = strategy.data_rank * share
        parts = [range(i, min(i + 2, start + share)) for i in range(start, start + share, 2)]
        batches = [Batch(tokens[0, part], tokens[1, part], part) for part in parts]
        for estimator in optimizer.estimators:
            estimator.update(step, batches, strategy.extra_backward)
        losses.append(float(strategy.forward_backward(batches, loss_of, G)))
        for n, param in enumerate(model.parameters()):
            if noise:
                assert param.grad is not None
                param.grad.mul_(1 + noise * _random(param, step, n))
        strategy.clip_grad_norm_(1.0)
        _set_lr(optimizer, step)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def loss_of(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Mean over the micro-batch."""
    loss: Tensor = model(batch.inputs, batch.targets)
    return loss


def full_parameters(strategy: Strategy, model: LanguageModel) -> dict[str, Tensor]:
    """Full tensors by name, on all ranks."""
    return {name: strategy.full_tensor(p.detach()).clone() for name, p in model.named_parameters()}


def of_given_gradients(placement: str, options: Sequence[str], steps: int) -> dict[str, Outcome]:
    """Parameters after steps with given gradients, by option."""

    def one(strategy: Strategy, option: str) -> dict[str, Tensor]:
        model = gpt()
        steps_with_given_gradients(model, placed(strategy, option, model), 0, steps)
        return full_parameters(strategy, model)

    return _each(placement, options, one)


def of_training(
    placement: str, options: Sequence[str], steps: int, noise: float = 0.0, architecture: str = "gpt"
) -> dict[str, Outcome]:
    """Parameters after steps of training, and "losses", by option.

    Without biases: that of the keys has no gradient, as softmax does not see it, but rounding errors, which adaptive
    rules make as large as any other gradient.
    """

    def one(strategy: Strategy, option: str) -> dict[str, Tensor]:
        model = ARCHITECTURES[architecture]()
        optimizer = placed(strategy, option, model)
        losses = steps_of_training(strategy, model, optimizer, steps, noise)
        return {"losses": torch.tensor(losses, dtype=torch.float64), **full_parameters(strategy, model)}

    return _each(placement, options, one)


def of_a_continued_run(
    placement: str, options: Sequence[str], folder: Path, first: int, last: int
) -> dict[str, Outcome]:
    """Parameters after steps first to last - 1 with given gradients, from and to checkpoints in folder, by option."""

    def one(strategy: Strategy, option: str) -> dict[str, Tensor]:
        model = gpt()
        optimizer = placed(strategy, option, model)
        store = CheckpointStore(folder / option, keep=2, permanent_every=None, ranks=strategy.ranks)
        saved = store.newest()
        assert (saved is None) == (first == 0)
        if saved is not None:
            parameters = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
            state = optimizer.empty_state(saved.group("optim"))
            saved.read_into(parameters | {f"optim.{name}": tensor for name, tensor in state.items()})
            optimizer.load_state(state, saved.state["optim"])
        steps_with_given_gradients(model, optimizer, first, last)
        tensors, rest = optimizer.save_state()
        parameters = {f"model.{name}": p for name, p in model.named_parameters()}
        named = parameters | {f"optim.{name}": tensor for name, tensor in tensors.items()}
        store.save(Checkpoint(named, {"step": last, "optim": rest}))
        store.wait()
        return full_parameters(strategy, model)

    return _each(placement, options, one)


def bytes_held(placement: str, options: Sequence[str]) -> dict[str, Outcome]:
    """Bytes of parameters, gradients and state on this rank, by option."""

    def one(strategy: Strategy, option: str) -> dict[str, Tensor]:
        model = gpt(n_layer=4, n_embd=32)
        optimizer = placed(strategy, option, model)
        steps_with_given_gradients(model, optimizer, 0, 1)
        parameters = sum(local(p.detach()).nbytes for p in model.parameters())
        return {"bytes": torch.tensor(2 * parameters + optimizer.state_bytes())}

    return _each(placement, options, one)


def reductions(micro_batches: int) -> int:
    """How often gradients cross ranks in an extra backward pass under FSDP2."""
    strategy, model = open_strategy("fsdp2"), gpt()
    strategy.prepare(model, model.blocks)
    tokens = torch.zeros(2, 1, T, dtype=torch.long)
    batches = [Batch(tokens[0], tokens[1], [i]) for i in range(micro_batches)]
    with torch.profiler.profile() as profile:
        strategy.extra_backward(batches, loss_of, 2 * micro_batches)
    strategy.close()
    return sum(event.count for event in profile.key_averages() if event.key.startswith("c10d::_reduce_scatter"))


def loads_of(options: Sequence[str]) -> dict[str, list[float]]:
    """Arithmetic that the ranks own of each option's matrix method, under DDP."""
    strategy, loads = open_strategy("ddp"), {}
    for option in options:
        model = gpt(n_layer=4, n_embd=32)
        optimizer = placed(strategy, option, model)
        steps_with_given_gradients(model, optimizer, 0, 1)
        loads[option] = next(owners.loads for each in optimizer.members if (owners := each.owners()) is not None)
    strategy.close()
    return loads


def shares(placement: str) -> tuple[int, int]:
    """Which share of the data this rank reads, and of how many."""
    strategy = open_strategy(placement)
    strategy.close()
    return strategy.data_rank, strategy.data_ranks


def evaluated(placement: str, n_sequences: int) -> float:
    """The evaluation's loss of a fresh model, on ranks that get different numbers of micro-batches."""
    strategy, model = open_strategy(placement), gpt()
    strategy.prepare(model, model.blocks)
    tokens = torch.randint(0, V, (2, n_sequences, T), generator=torch.Generator().manual_seed(3))
    batches = []
    for start in range(0, n_sequences, 2 * strategy.data_ranks):
        first = start + 2 * strategy.data_rank
        indices = range(first, min(first + 2, n_sequences))
        taken = list(indices) or [0]
        batches.append(Batch(tokens[0, taken], tokens[1, taken], indices or (PADDING,)))
    loss = strategy.evaluate(batches, loss_of)
    strategy.close()
    return loss


def whole_after(n_backward: int) -> list[str]:
    """The parameters that FSDP2 leaves gathered after so many backward passes, an evaluation and a sample."""
    strategy, model = open_strategy("fsdp2"), gpt()
    strategy.prepare(model, model.blocks)
    tokens = torch.zeros(2, 2, T, dtype=torch.long)
    batch = Batch(tokens[0], tokens[1], [0, 1])
    for _ in range(n_backward):
        strategy.forward_backward([batch], loss_of, 4)
    strategy.evaluate([batch], loss_of)
    with torch.no_grad():
        model(tokens[0])
    strategy.close()
    return [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]


def compressed(how: str | None) -> dict[str, dict[str, Tensor]]:
    """Gradients of the fourth step, and of an extra backward pass, under DDP with compression, here from step 2 on."""
    parallel.POWERSGD_FROM = 2
    strategy = DDP(compression=how, device=torch.device("cpu"), precision="fp32", compiled=False, timeout_seconds=30)
    model = gpt(bias=False)
    strategy.prepare(model, model.blocks)
    tokens = torch.randint(0, V, (2, G, T), generator=torch.Generator().manual_seed(strategy.rank))
    indices = range(strategy.rank * G, (strategy.rank + 1) * G)
    found = {}
    for name in ("gradients", "gradients", "gradients", "gradients", "extra"):
        backward = strategy.extra_backward if name == "extra" else strategy.forward_backward
        backward([Batch(tokens[0], tokens[1], indices)], loss_of, 2 * G)
        found[name] = {each: p.grad.clone() for each, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
    strategy.close()
    return found


def memory_of_powersgd(poisoned_step: int) -> dict[str, Any]:
    """Steps that were finite, and whether all that PowerSGD keeps is, after a nan on the last rank; from step 2 on."""
    parallel.POWERSGD_FROM = 2
    strategy = DDP(
        compression="powersgd", device=torch.device("cpu"), precision="fp32", compiled=False, timeout_seconds=30
    )
    model = gpt(bias=False)
    strategy.prepare(model, model.blocks)
    tokens = torch.randint(0, V, (2, G, T), generator=torch.Generator().manual_seed(strategy.rank))
    indices = range(strategy.rank * G, (strategy.rank + 1) * G)
    finite_steps = []
    for step in range(6):
        factor = math.nan if step == poisoned_step and strategy.rank == strategy.world_size - 1 else 1.0
        strategy.forward_backward(
            [Batch(tokens[0], tokens[1], indices)], lambda m, b, factor=factor: loss_of(m, b) * factor, 2 * G
        )
        is_finite = torch.isfinite(strategy.clip_grad_norm_(None))
        strategy.keep_finite(is_finite)
        finite_steps.append(bool(is_finite))
        model.zero_grad()
    assert strategy._powersgd is not None
    state = strategy._powersgd.state
    kept = [*state.error_dict.values(), *state.p_memory_dict.values(), *state.q_memory_dict.values()]
    right = [tensor.clone() for tensor in state.q_memory_dict.values()]
    strategy.close()
    return {"finite": finite_steps, "kept": len(kept), "is_finite": all(map(_is_finite, kept)), "right": right}


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def told() -> dict[str, Any]:
    """What ranks tell each other."""
    strategy = open_strategy("ddp")
    ranks, order = strategy.ranks, []

    def refuse() -> None:
        raise ValueError(f"rank {ranks.rank} says no")

    found: dict[str, Any] = {
        "gathered": ranks.gather(10 * ranks.rank),
        "from main": ranks.from_main(lambda: ranks.rank),
    }
    try:
        ranks.main_first(refuse, "refusing")
    except ValueError as error:
        found["error"] = str(error)
    ranks.main_first(lambda: order.append("main" if ranks.is_main else ranks.rank), "queueing")
    found["order"] = order
    found["votes"] = [ranks.any_so_far(ranks.rank == 1 and n == 1) for n in range(4)]
    strategy.close()
    return found


def _each(
    placement: str, options: Sequence[str], one: Callable[[Strategy, str], dict[str, Tensor]]
) -> dict[str, Outcome]:
    strategy = open_strategy(placement)
    found: dict[str, Outcome] = {}
    for option in options:
        try:
            found[option] = one(strategy, option)
        except Exception:
            found[option] = traceback.format_exc()
    strategy.close()
    return found


def _random(param: Tensor, step: int, n: int) -> Tensor:
    return torch.randn(param.shape, generator=torch.Generator().manual_seed(1000 * step + n))


def _like(param: Tensor, full: Tensor) -> Tensor:
    if isinstance(param, DTensor):
        return distribute_tensor(full, param.device_mesh, param.placements, src_data_rank=None)
    return full


def _set_lr(optimizer: OptimizerSet, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) / (1 + step)


def _nodes(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict):
        yield found
        for value in found.values():
            yield from _nodes(value)

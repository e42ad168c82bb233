"""What ranks do in tests of optimizers; their processes import it."""

import copy
from typing import Any

import laws
import torch
from hooked import Turning
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from optim import CurvaturePass, GaussNewtonBartlett, Sophia
from optim.factored import column_maxima
from optim.sharding import Rows, local


def curvature_that_is_not_finite_on_one_rank(placement: str) -> dict[str, Any]:
    """What three estimates leave, the second of which has one NaN, on the last rank alone."""
    strategy, model = laws.open_strategy(placement), laws.gpt()
    optimizer = laws.placed(strategy, "sophiag", model)
    (sophia,) = optimizer.optimizers
    assert isinstance(sophia, Sophia)
    hessians: list[dict[str, Tensor]] = []
    for n in range(3):
        estimates = {p: laws._like(p, laws._random(p, n, i).square()) for i, p in enumerate(model.parameters())}
        if n == 1 and strategy.rank == strategy.world_size - 1:
            local(estimates[model.h[0].mlp.c_fc.weight])[-1, 0] = torch.nan
        sophia.update_curvature(estimates)
        hessians.append(
            {name: strategy.full_tensor(sophia.state[p]["hessian"]).clone() for name, p in model.named_parameters()}
        )
    found = {
        "kept": all(torch.equal(tensor, hessians[0][name]) for name, tensor in hessians[1].items()),
        "went on": all(not torch.equal(tensor, hessians[0][name]) for name, tensor in hessians[2].items()),
        "finite": all(tensor.isfinite().all() for tensor in hessians[2].values()),
        "skipped": float(sophia.diagnostics()["skipped_estimates"]),
        "estimates": {float(state["estimates"]) for state in sophia.state.values()},
    }
    strategy.close()
    return found


def a_copy_and_a_later_group(placement: str, option: str) -> dict[str, Tensor]:
    """Parameters after a model and its optimizer were copied and the copy went on, with a group that came later."""
    strategy, model = laws.open_strategy(placement), laws.gpt()
    optimizer = laws.placed(strategy, option, model)
    laws.steps_with_given_gradients(model, optimizer, 0, 3)
    twin, other = copy.deepcopy((model, optimizer)) if placement != "fsdp2" else (model, optimizer)
    late = [
        nn.Parameter(laws._like(p, laws._random(p, 9, n))) for n, p in enumerate(twin.h[0].parameters()) if n in (2, 4)
    ]
    other.optimizers[0].add_param_group({"params": late})
    other.names.update({param: f"late.{n}" for n, param in enumerate(late)})
    for step in range(3, 7):
        for n, param in enumerate([*twin.parameters(), *late]):
            param.grad = laws._like(param, laws._random(param, step, n))
        other.step()
        other.zero_grad()
    found = laws.full_parameters(strategy, twin) | {
        other.names[p]: strategy.full_tensor(p.detach()).clone() for p in late
    }
    strategy.close()
    return found


def maxima_over_rows() -> dict[str, Tensor]:
    """Of a tensor, the first rank of which holds one row, the last none."""
    strategy = laws.open_strategy("ddp")
    first, last = [(0, 1), (1, 4), (4, 4)][strategy.rank]
    own = laws._random(torch.empty(4, 3, 2), 0, 0)[first:last]
    found = {"maxima": Rows(strategy.group, 4, first).max(column_maxima(own)), "own": own}
    strategy.close()
    return found


def shares_of_turning(placement: str) -> dict[str, Any]:
    """Who owns which matrix of an optimizer that only tests know, what ranks are assigned, and two steps' outcome."""
    strategy = laws.open_strategy(placement)
    shapes = {"wide0": (4, 64), "square": (16, 16), "wide1": (4, 64), "wide2": (4, 64)}  # of as many numbers
    params = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    optimizer = Turning(params.values())
    optimizer.distribute(strategy.group)
    for step in range(2):
        for n, param in enumerate(params.values()):
            param.grad = laws._random(param, step, n)
        optimizer.step()
    owners = optimizer.owners()
    found: dict[str, Any] = {"values": {name: param.detach().clone() for name, param in params.items()}}
    if owners is not None:
        found |= {"owner": {name: owners.owner[param] for name, param in params.items()}, "loads": owners.loads}
    strategy.close()
    return found


def curvature_pass(placement: str) -> list[Tensor]:
    """Both ranks' estimates of a CurvaturePass on a model that each has wrapped by torch's own means, in full.

    The last rank's sequences are shorter, and some of their targets do not count.
    """
    strategy, model = laws.open_strategy(placement), laws.gpt()
    generator = torch.Generator().manual_seed(3)
    batches = [tuple(torch.randint(laws.V, (2, 4, n), generator=generator)) for n in (5, 3)]
    batches[1][1][0, 1:] = -100
    wrapped: nn.Module = model
    if placement == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model)
    elif placement == "fsdp2":
        wrapped = fully_shard(model)
    optimizer = Sophia(model.parameters(), curvature=GaussNewtonBartlett())
    own = batches if placement == "single" else [batches[strategy.rank]]
    CurvaturePass(wrapped, optimizer, seed=1).update(*own)
    found = [strategy.full_tensor(optimizer.state[param]["hessian"]).clone() for param in model.parameters()]
    strategy.close()
    return found


def unequal_sequences() -> str:
    """What a rank is told where the ranks have 2 and 3 sequences."""
    strategy, model = laws.open_strategy("ddp"), laws.gpt()
    tokens = torch.zeros(strategy.rank + 2, laws.T, dtype=torch.int64)
    optimizer = Sophia(model.parameters(), curvature=GaussNewtonBartlett())
    try:
        CurvaturePass(model, optimizer).update((tokens, tokens))
        said = ""
    except ValueError as error:
        said = str(error)
    strategy.close()
    return said

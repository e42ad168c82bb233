"""What ranks do in tests of optimizers; their processes import it."""

from typing import Any

import laws
import torch
from torch import Tensor

from optim import Sophia
from optim.sharding import local


def curvature_that_is_not_finite_on_one_rank(placement: str) -> dict[str, Any]:
    """What three estimates leave, the second of which has one NaN, on the last rank alone."""
    strategy, model = laws.open_strategy(placement), laws.gpt()
    optimizer = laws.placed(strategy, "sophiag", model)
    (sophia,) = optimizer.members
    assert isinstance(sophia, Sophia)
    hessians: list[dict[str, Tensor]] = []
    for n in range(3):
        estimates = {p: laws._like(p, laws._random(p, n, i).square()) for i, p in enumerate(model.parameters())}
        if n == 1 and strategy.rank == strategy.world_size - 1:
            local(estimates[model.h[0].mlp.c_fc.weight])[-1, 0] = torch.nan
        sophia.update_curvature(estimates)
        hessians.append(
            {name: strategy.whole(sophia.state[p]["hessian"]).clone() for name, p in model.named_parameters()}
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

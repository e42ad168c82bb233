"""How much state an optimizer keeps, known before any of it exists."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .base import Optimizer
from .build import build

ANY_BATCH = 1 << 30  # sequences; estimators keep no state, whatever their batch


def state_bytes(config: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], roles: Mapping[str, str]) -> int:
    """Bytes of state that the optimizers of a config keep for these parameters, which may lie on the meta device.

    Ours declare it; another's shows it in a step on the meta device, without memory or arithmetic.
    """
    meta = {name: nn.Parameter(torch.empty_like(param, device="meta")) for name, param in parameters.items()}
    optimizer = build(config, meta, roles, seed=0, global_batch=ANY_BATCH)
    for member in optimizer.members:
        if isinstance(member, Optimizer):
            member.init_state()
        else:
            _step_on_meta(member)
    return optimizer.state_bytes()


def _step_on_meta(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        if "fused" in group:
            group["fused"] = False  # has no meta kernel; keeps the same state
        for param in group["params"]:
            param.grad = torch.empty_like(param)
    optimizer.step()

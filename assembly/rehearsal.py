"""Finds out, before a run begins and data are prepared, whether its model, optimizer and schedule can be made."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assembly.model import meta_model
from configs import RunConfig, plug_in
from optim import build as optimizers

COMPLETE = ("cpu", "cuda", "meta")  # types of devices on which every optimizer here is tested
SIDE = 16  # of the tensors that are tried


def check_settings(config: RunConfig) -> None:
    """Makes the model (on the meta device), the optimizer and the schedule. Raises: ValueError: if one cannot be."""
    model = meta_model(config, config.model.get("vocab_size") or 1)
    parameters, roles = dict(model.named_parameters()), model.roles()
    optimizers.build(config.optim, parameters, roles, seed=config.seed, global_batch=config.global_batch)
    plug_in(config.schedule, max_steps=config.max_steps)


def check_optimizer(config: RunConfig, device: torch.device) -> None:
    """Steps the optimizer once on small tensors, unless the device is known to have all operations.

    Raises: ValueError: if the device lacks one, such as arithmetic in float64 on Apple's MPS.
    """
    if device.type in COMPLETE:
        return
    try:
        _step(config, device)
    except (TypeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"device={device.type} lacks what this optim computes with: {reason}; use device=cpu, or another optim"
        ) from error


def _step(config: RunConfig, device: torch.device) -> None:
    """One step, curvature included, and what is logged of it, on one parameter of each role without a model."""
    model = meta_model(config, config.model.get("vocab_size") or 1)
    parameters, roles = dict(model.named_parameters()), model.roles()
    first = {roles[name]: name for name in reversed(parameters)}
    tried = {
        name: nn.Parameter(torch.full([SIDE] * parameters[name].ndim, 0.5, device=device)) for name in first.values()
    }
    own = {name: roles[name] for name in tried}
    optimizer = optimizers.build(config.optim, tried, own, seed=config.seed, global_batch=config.global_batch)

    def backward(batches: Sequence[Any], loss_fn: Callable[[nn.Module, Any], Tensor], sequences: int) -> Tensor:
        for parameter in tried.values():
            parameter.grad = torch.ones_like(parameter)
        return torch.ones((), device=device)

    for estimator in optimizer.estimators:
        estimator.update(estimator.first_step, [], backward)
    backward([], lambda model, batch: torch.ones(()), 1)
    optimizer.step(measured=True, is_finite=torch.ones((), dtype=torch.bool, device=device))
    optimizer.diagnostics()

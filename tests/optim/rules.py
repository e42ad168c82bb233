"""Every optimizer of the package, for tests of what all of them promise."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from optim import (
    CAME,
    COAP,
    SGD,
    SM3,
    SMMF,
    SOAP,
    Adafactor,
    Adalayer,
    AdamW,
    Adapprox,
    FAdam,
    Flora,
    GaLore,
    GaussNewtonBartlett,
    HFac,
    Lion,
    RMSprop,
    Shampoo,
    Signum,
    Sophia,
)
from optim.base import RuleOptimizer

RULES: dict[str, tuple[Callable[..., RuleOptimizer], dict[str, Any]]] = {
    "adamw": (AdamW, {}),
    "lion": (Lion, {"weight_decay": 0.1}),
    "sgd": (SGD, {"nesterov": True, "weight_decay": 0.1}),
    "sgd, plain": (SGD, {"momentum": 0.0}),
    "signum": (Signum, {"weight_decay": 0.1}),
    "adafactor": (Adafactor, {"weight_decay": 0.1}),
    "adafactor, momentum": (Adafactor, {"beta1": 0.9, "relative_step": False}),
    "adalayer": (Adalayer, {"weight_decay": 0.1}),
    "adalayer, rows": (Adalayer, {"per_row": True}),
    "fadam": (FAdam, {"betas": (0.9, 0.9), "weight_decay": 0.1}),
    "rmsprop": (RMSprop, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    "rmsprop, plain": (RMSprop, {"alpha": 0.9}),
    "sm3": (SM3, {"weight_decay": 0.1}),
    "sm3, alone": (SM3, {"momentum": 0.0}),
    "came": (CAME, {"weight_decay": 0.1}),
    "hfac": (HFac, {"weight_decay": 0.1}),
    "smmf": (SMMF, {"weight_decay": 0.1}),
    "adapprox": (Adapprox, {"weight_decay": 0.1, "rank_interval": 2}),
    "adapprox, no momentum": (Adapprox, {"beta1": None, "max_rank_fraction": 0.5}),
    "sophia": (Sophia, {}),
    "soap": (SOAP, {"precondition_frequency": 2}),
    "shampoo": (Shampoo, {"precondition_frequency": 2, "weight_decay": 0.1}),
    "flora": (Flora, {"rank": 2, "kappa": 2, "weight_decay": 0.1}),
    "galore": (GaLore, {"rank": 2, "update_interval": 2, "weight_decay": 0.1}),
    "coap": (COAP, {"rank": 2, "update_interval": 1, "svd_factor": 3, "weight_decay": 0.1}),
    "coap, adafactor": (COAP, {"base": "adafactor", "rank": 2, "update_interval": 2, "svd_factor": 2}),
    "shampoo, alone": (Shampoo, {"precondition_frequency": 2, "grafting": None}),
    "shampoo, qr": (Shampoo, {"precondition_frequency": 2, "eigensolver": "qr"}),
}


def made(rule: str, params: Any, **settings: Any) -> RuleOptimizer:
    """The optimizer, with lr 0.01 unless settings have another."""
    make, own = RULES[rule]
    extra = {"curvature": GaussNewtonBartlett(every=2)} if make is Sophia else {}
    return make(params, **{"lr": 0.01, **own, **settings}, **extra)


def parameters(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Random ones, the same for the same shapes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def step(optimizer: RuleOptimizer, n: int) -> None:
    """Step n (0-based) of all parameters, with gradients, and every other time curvature, that depend on n alone."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    generator = torch.Generator().manual_seed(n)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    if isinstance(optimizer, Sophia) and n % 2 == 0:
        optimizer.update_curvature({p: p.grad.square() for p in params if p.grad is not None})
    optimizer.step()

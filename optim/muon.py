"""Muon: see the class."""

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, one_of, within
from .newton_schulz import orthogonal, orthogonal_flops

SCALES = ("rms", "shape")
UPDATE_RMS = 0.2  # Adam's update's, as Moonlight measures it


class Muon(RuleOptimizer):
    """Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): momentum, made orthogonal by Newton-Schulz steps.

    For matrices only; give embeddings, the head and vectors to another optimizer. State for a matrix (m, n): exp_avg
    (m, n), and with normalize_rows exp_avg_sq_row (m). Memory: mn numbers, or mn + m.
    scale: "rms" gives every update the RMS 0.2 of Adam's, so that AdamW's lr and weight_decay carry over (Moonlight,
    arXiv:2502.16982, equation 4): 0.2 sqrt(max(m, n)); "shape", sqrt(max(1, m / n)), as first published, wants an lr of
    about 0.02. normalize_rows: NorMuon (arXiv:2510.05491, Algorithm 1): each row is divided by the root of an average,
    with beta2, of its mean square, and the update scaled back to its norm. splits_qkv: a matrix with three times as
    many rows as columns is GPT-2's query, key and value in one, and each is made orthogonal by itself.
    bf16_products: Newton-Schulz in bfloat16, as published; else in fp32, or TensorFloat32 where the user has allowed
    it. Five steps take singular values from 0.0015 of the matrix's norm up into [0.68, 1.21]; bfloat16 adds some
    hundredths.
    Differs from the published code: of matrices that are longer than wide, or wider than long, up to three steps are
    done on the product with their transposes, which is smaller (newton_schulz.py); and a zero gradient leaves its
    matrix where it is.

    Raises: ValueError: if a setting is out of its range, or a parameter is no matrix.
    """

    takes_stacks = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        beta2: float = 0.95,
        eps: float = 1e-7,
        newton_schulz_steps: int = 5,
        scale: str = "rms",
        *,
        nesterov: bool = True,
        normalize_rows: bool = False,
        splits_qkv: bool = True,
        bf16_products: bool = True,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        settings: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "beta2": beta2}
        settings |= {"eps": eps, "newton_schulz_steps": newton_schulz_steps, "scale": scale, "nesterov": nesterov}
        settings |= {"normalize_rows": normalize_rows, "splits_qkv": splits_qkv, "bf16_products": bf16_products}
        super().__init__(params, settings, execution, state)

    @override
    @classmethod
    def check_parameter(cls, name: str, param: Tensor) -> None:
        super().check_parameter(name, param)
        if param.ndim != 2:
            raise ValueError(f"Muon: {name} is no matrix, but has {param.ndim} dimensions; give it to AdamW")

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "momentum", hp.momentum, 0, 1)
        within(self, "beta2", hp.beta2, 0, 1)
        within(self, "eps", hp.eps, 0, math.inf, open_low=True)
        within(self, "newton_schulz_steps", hp.newton_schulz_steps, 1, 100)
        one_of(self, "scale", hp.scale, SCALES)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        rows = {"exp_avg_sq_row": Spec(shape[:1])} if hp.normalize_rows else {}
        return {"exp_avg": Spec(shape, moment="signed"), **rows}

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        m = state["exp_avg"].mul_(hp.momentum).add_((1 - hp.momentum) * grad)  # B
        x = (1 - hp.momentum) * grad + hp.momentum * m if hp.nesterov else m
        parts = _parts(x.shape, hp)
        rows, columns = x.shape[-2] // parts, x.shape[-1]
        stack = x.view(-1, rows, columns)
        o = orthogonal(stack, hp.newton_schulz_steps, hp.eps, in_bf16=hp.bf16_products).view_as(x)  # O
        if "exp_avg_sq_row" in state:
            v = state["exp_avg_sq_row"].mul_(hp.beta2).add_((1 - hp.beta2) * o.square().mean(-1))
            normalized = o / (v.sqrt() + hp.eps).unsqueeze(-1)
            o = normalized * (_norm(o) / _norm(normalized).clamp(min=hp.eps))
        size: float = UPDATE_RMS * max(rows, columns) ** 0.5 if hp.scale == "rms" else max(1, rows / columns) ** 0.5
        return o * size

    @override
    def flops(self, shape: Shape, hp: Hyper, steps: int) -> float:
        parts = _parts(shape, hp)
        short, long = sorted((shape[0] // parts, shape[1]))
        return steps * parts * orthogonal_flops(short, long, int(hp.newton_schulz_steps))


def _parts(shape: Shape, hp: Hyper) -> int:
    return 3 if hp.splits_qkv and shape[-2] == 3 * shape[-1] else 1


def _norm(x: Tensor) -> Tensor:
    found: Tensor = torch.linalg.matrix_norm(x, keepdim=True)
    return found

"""Counts a model's parameters and floating-point operations, and knows the peak performance of devices.

Convention (Kaplan et al. 2020 and PaLM's appendix B): matrix products only; a multiply-add is two operations;
attention counts full T x T score matrices although the mask makes half of them unnecessary, so that utilisation
compares with published figures. The head counts its padded rows, since they are computed. Optimizers count their own
products by the same convention, and factorisations by textbook figures (optim/kronecker.py).
"""

import re

import torch
from torch import nn

from model.base import LanguageModel

# Dense matrix operations per second in the vendors' data sheets, without sparsity, by part of the device's name.
PEAKS = (
    ("GB200", {torch.bfloat16: 2.5e15, torch.float32: 80e12}),
    ("B200", {torch.bfloat16: 2.25e15, torch.float32: 75e12}),
    ("GH200", {torch.bfloat16: 989e12, torch.float32: 67e12}),
    ("H200 NVL", {torch.bfloat16: 835e12, torch.float32: 60e12}),
    ("H200", {torch.bfloat16: 989e12, torch.float32: 67e12}),
    ("H100 PCIe", {torch.bfloat16: 756e12, torch.float32: 51e12}),
    ("H100 NVL", {torch.bfloat16: 835e12, torch.float32: 60e12}),
    ("H100", {torch.bfloat16: 989e12, torch.float32: 67e12}),
    ("MI300X", {torch.bfloat16: 1307e12, torch.float32: 163e12}),
    ("A100", {torch.bfloat16: 312e12, torch.float32: 19.5e12}),
    ("A10G", {torch.bfloat16: 70e12, torch.float32: 35e12}),
    ("L40S", {torch.bfloat16: 362e12, torch.float32: 92e12}),
    ("L40", {torch.bfloat16: 181e12, torch.float32: 90e12}),
    ("L4", {torch.bfloat16: 121e12, torch.float32: 30e12}),
    ("RTX 4090", {torch.bfloat16: 165e12, torch.float32: 83e12}),
    ("RTX 3090", {torch.bfloat16: 71e12, torch.float32: 36e12}),
    ("V100", {torch.float32: 15.7e12}),
    ("T4", {torch.float32: 8.1e12}),
)


def parameter_count(model: nn.Module) -> int:
    """Returns the number of trainable numbers: a tied head once, padded rows included."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_token(model: LanguageModel, seq_len: int | None = None) -> int:
    """Returns the FLOPs per token of forward and backward pass; the latter has twice those of the former."""
    return 3 * model.forward_flops_per_token(seq_len)


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Returns the FLOP/s of the device's data sheet for matrices of dtype, None if unknown.

    device_name: as torch.cuda.get_device_name gives it. float32 means float32, not TF32.
    """
    if "Laptop" in device_name:  # the desktop card's name on a smaller chip
        return None
    for name, peaks in PEAKS:
        if re.search(rf"\b{name}\b", device_name):  # an A1000 is no A100
            return peaks.get(dtype)
    return None

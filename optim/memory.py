"""How much state an optimizer keeps, known before any of it exists."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .build import build

ANY_BATCH = 1 << 30  # sequences; estimators keep no state, whatever their batch


def state_bytes(config: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], roles: Mapping[str, str]) -> int:
    """Bytes of state that the optimizers of a config keep for these parameters, which may lie on the meta device.

    Ours declare it; a foreign one shows it in a step on the meta device, without memory or arithmetic.
    """
    meta = {name: nn.Parameter(torch.empty_like(param, device="meta")) for name, param in parameters.items()}
    optimizer = build(config, meta, roles, seed=0, global_batch=ANY_BATCH)
    optimizer.init_state()
    return optimizer.state_bytes()


def allocated_bytes(config: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], roles: Mapping[str, str]) -> int:
    """Bytes of the memory that state really takes, in host memory, for parameters of these shapes and dtypes.

    What optimizers only set to zero is reserved and not touched.
    """
    real = {name: nn.Parameter(torch.zeros(param.shape, dtype=param.dtype)) for name, param in parameters.items()}
    optimizer = build(config, real, roles, seed=0, global_batch=ANY_BATCH)
    optimizer.init_state()
    found = {tensor.untyped_storage().data_ptr(): tensor for tensor in optimizer.state_tensors()}
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

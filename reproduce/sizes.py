"""Sizes of what a claim trains, from its configuration alone."""

from functools import cache
from typing import Any

from reproduce.arms import Point
from reproduce.claim import Claim
from reproduce.composed import composed
from reproduce.forecast import model_of

IN_BLOCKS = ("matrix", "vector")  # roles


def sizes(claim: Claim[Any]) -> tuple[int, int]:
    """Parameters in the blocks of the baseline's model, embedding and head aside, and tokens of a step."""
    return _sizes((*claim.common, *claim.baseline.overrides))


@cache
def _sizes(overrides: Point) -> tuple[int, int]:
    config = composed(overrides)
    model = model_of(config)
    roles = model.roles()
    numbers = sum(p.numel() for name, p in model.named_parameters() if roles[name] in IN_BLOCKS)
    return numbers, config.global_batch * model.block_size

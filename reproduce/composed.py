"""Configurations of runs, each set of overrides composed once."""

from functools import lru_cache
from typing import Any

import configs
from configs import Composed, RunConfig
from reproduce.arms import Point


def composed(overrides: Point) -> RunConfig:
    """configs.compose; not to be changed."""
    return _composed(overrides).config


def settings_of(overrides: Point) -> dict[str, Any]:
    """The settings that the run is named by, a copy."""
    return dict(_composed(overrides).settings)


@lru_cache(maxsize=1024)
def _composed(overrides: Point) -> Composed:
    return configs.composed(list(overrides))

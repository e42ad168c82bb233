"""Configurations of runs, each set of overrides composed once."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import configs
from configs import RunConfig
from reproduce.arms import Point


@lru_cache(maxsize=1024)
def composed(overrides: Point) -> RunConfig:
    """configs.compose."""
    return configs.compose(list(overrides))


def settings_of(overrides: Point) -> dict[str, Any]:
    """configs.settings, a copy."""
    return dict(_settings(overrides))


@lru_cache(maxsize=1024)
def _settings(overrides: Point) -> Mapping[str, Any]:
    return configs.settings(overrides)

"""Optimizers, one file per paper, on one engine (base.py); needs torch and the standard library only."""

from .curvature import GaussNewtonBartlett, Hutchinson
from .sophia import Sophia

__all__ = ["GaussNewtonBartlett", "Hutchinson", "Sophia"]

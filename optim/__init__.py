"""Optimizers, one file per paper, on one engine (base.py); needs torch and the standard library only."""

from .adafactor import Adafactor
from .adamw import AdamW
from .curvature import GaussNewtonBartlett, Hutchinson
from .lion import Lion
from .sgd import SGD
from .shampoo import Shampoo
from .signum import Signum
from .soap import SOAP
from .sophia import Sophia

__all__ = [
    "SGD",
    "SOAP",
    "Adafactor",
    "AdamW",
    "GaussNewtonBartlett",
    "Hutchinson",
    "Lion",
    "Shampoo",
    "Signum",
    "Sophia",
]

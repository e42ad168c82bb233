"""Optimizers, one file per paper; needs torch and the standard library only.

Writing one: rule.py (what its author writes), base.py (the engine: a step), state.py, saving.py, groups.py (state and
parameter groups), pieces.py, execution.py (how a rule gets its tensors), sharding.py (ranks). Shared by several papers:
moments.py, factored.py, kronecker.py, subspace.py, preconditioner.py, curvature.py. Using several: build.py (YAML to
optimizers), ensemble.py (a model's optimizers as one), member.py (what it asks of each), memory.py (bytes of state).
"""

from .adafactor import Adafactor
from .adamw import AdamW
from .adapprox import Adapprox
from .came import CAME
from .curvature import GaussNewtonBartlett, Hutchinson
from .hfac import HFac
from .lion import Lion
from .sgd import SGD
from .shampoo import Shampoo
from .signum import Signum
from .smmf import SMMF
from .soap import SOAP
from .sophia import Sophia

__all__ = [
    "CAME",
    "SGD",
    "SMMF",
    "SOAP",
    "Adafactor",
    "AdamW",
    "Adapprox",
    "GaussNewtonBartlett",
    "HFac",
    "Hutchinson",
    "Lion",
    "Shampoo",
    "Signum",
    "Sophia",
]

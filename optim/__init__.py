"""Optimizers, one file per paper; needs torch and the standard library only.

Writing one: rule.py (what its author writes), base.py (what its users see: a step), engine.py (how one is taken).
Settings and state: hyper.py, ranges.py, groups.py, grouped.py, state.py, saving.py, saved_groups.py; formats.py,
coding.py (bf16, int8). How a rule gets its tensors: pieces.py, stacks.py, execution.py, streams.py; across ranks:
shared.py, sharding.py, owners.py, exchange.py; how far a step went: changes.py. Used by several papers: moments.py,
factored.py, kronecker.py, preconditioner.py, projected.py, projection.py, refreshing.py, precision.py, noise.py,
subspace.py; by Sophia alone: curvature.py, gauss_newton.py, hutchinson.py, sampling.py, curvature_average.py, and in
loops of others curvature_pass.py, user_batches.py, curvature_callback.py; by SOAP: eigenbasis.py; by Muon:
newton_schulz.py. Using several: nodes.py, build.py (YAML to optimizers), ensemble.py, saved_set.py (a model's
optimizers as one), member.py, foreign.py (what it asks of each), memory.py (bytes of state).
"""

from .adafactor import Adafactor
from .adalayer import Adalayer
from .adamw import AdamW
from .adapprox import Adapprox
from .came import CAME
from .coap import COAP
from .curvature_callback import CurvatureCallback
from .curvature_pass import CurvaturePass
from .fadam import FAdam
from .flora import Flora
from .galore import GaLore
from .gauss_newton import GaussNewtonBartlett
from .hfac import HFac
from .hutchinson import Hutchinson
from .lion import Lion
from .muon import Muon
from .rmsprop import RMSprop
from .sgd import SGD
from .shampoo import Shampoo
from .signum import Signum
from .sm3 import SM3
from .smmf import SMMF
from .soap import SOAP
from .sophia import Sophia

__all__ = [
    "CAME",
    "COAP",
    "SGD",
    "SM3",
    "SMMF",
    "SOAP",
    "Adafactor",
    "Adalayer",
    "AdamW",
    "Adapprox",
    "CurvatureCallback",
    "CurvaturePass",
    "FAdam",
    "Flora",
    "GaLore",
    "GaussNewtonBartlett",
    "HFac",
    "Hutchinson",
    "Lion",
    "Muon",
    "RMSprop",
    "Shampoo",
    "Signum",
    "Sophia",
]

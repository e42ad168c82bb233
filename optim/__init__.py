from .adafactor import Adafactor
from .adalayer import Adalayer
from .adamw import AdamW
from .adapprox import Adapprox
from .came import CAME
from .coap import COAP
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

"""Model architectures, their loss, and what they cost.

base.py         LanguageModel, the interface of all
gpt.py          GPT-2
llama.py        LLaMA
attention.py    causal attention; loss.py: cross entropy
generation.py   tokens drawn from a model; cache.py: the keys and values that this keeps
flops.py        parameters and floating-point operations
"""

from model.base import LanguageModel
from model.gpt import GPT
from model.llama import Llama

__all__ = ["GPT", "LanguageModel", "Llama"]

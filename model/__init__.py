"""Model architectures, their loss, and what they cost.

base.py    LanguageModel, the interface of all
gpt.py     GPT-2
llama.py   LLaMA
loss.py    cross entropy
flops.py   parameters and floating-point operations
"""

from model.base import LanguageModel
from model.gpt import GPT
from model.llama import Llama

__all__ = ["GPT", "LanguageModel", "Llama"]

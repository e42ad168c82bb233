"""Architectures: gpt.py and llama.py; what the project needs of one (base.py), its loss and what it costs."""

from model.base import LanguageModel
from model.gpt import GPT
from model.llama import Llama

__all__ = ["GPT", "LanguageModel", "Llama"]

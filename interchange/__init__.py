"""Weights of other programs: their layouts, read into our models and written from them.

layout.py      what a layout is, and what there is to write
stored.py      files of tensors, checked before they are used
hf.py          Hugging Face's GPT-2
nanogpt.py     nanoGPT's ckpt.pt
tokenizer.py   Hugging Face's files of a tokenizer
fitting.py     whether weights fit a model, and copies them into it
card.py        the model card: what was trained, and how

A layout is a file of its own that knows the layout both ways, and a line in LAYOUTS.
"""

from collections.abc import Mapping

from interchange.hf import HuggingFace
from interchange.layout import InterchangeError, Layout, Trained, Weights
from interchange.nanogpt import NanoGPT

LAYOUTS: Mapping[str, Layout] = {"hf": HuggingFace(), "nanogpt": NanoGPT()}

__all__ = ["LAYOUTS", "InterchangeError", "Layout", "Trained", "Weights", "layout_named"]


def layout_named(name: str, where: str) -> Layout:
    """Returns the layout of that name. where: the key that names it, for the message. Raises: InterchangeError."""
    if name not in LAYOUTS:
        raise InterchangeError(f"{where}: there is no layout {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]

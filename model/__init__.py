"""GPT-2: the transformer (gpt.py), its shape (config.py) and its cost (flops.py)."""

from typing import TYPE_CHECKING, Any

from model.config import GPTConfig

if TYPE_CHECKING:
    from model.gpt import GPT

__all__ = ["GPT", "GPTConfig"]


def __getattr__(name: str) -> Any:
    if name == "GPT":  # torch comes with it
        from model.gpt import GPT

        return GPT
    raise AttributeError(f"module 'model' has no attribute {name!r}")

"""The model card: README.md beside exported weights, with the record of the training."""

from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]  # OmegaConf brings it; its types are a package of their own

# What Hugging Face's hub reads of a card.
FRONT = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- gpt2\n- nanodescent\n---\n"


def card(name: str, usage: str, record: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Returns the card. record: rows of the table, what they are and their values; settings: of the training run."""
    rows = "".join(f"| {key} | {_shown(value)} |\n" for key, value in record.items() if value is not None)
    config = yaml.safe_dump(dict(settings), sort_keys=True, allow_unicode=True)
    return (
        f"{FRONT}# {name}\n\nA GPT-2 trained with nanodescent.\n\n## Use\n\n{usage}\n"
        f"## Training record\n\n| | |\n| --- | --- |\n{rows}\n## Settings\n\n```yaml\n{config}```\n"
    )


def _shown(value: Any) -> str:
    text = f"{value:,}" if type(value) is int else f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")

"""Continues a prompt with a trained model: python scripts/sample.py run=runs/<name> [prompt="def "] [tokens=200]
[temperature=0.8] [top_k=50] [seed=1337].
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs import ConfigError
from data import read_tokenizer
from model import GPT
from train import model_config
from trainer.checkpoint import CheckpointError, CheckpointStore
from trainer.run_directory import CONFIG, TOKENIZER


@dataclass
class Settings:
    """What to continue, and how."""

    run: str = MISSING
    prompt: str | None = None  # null: the data set's own
    tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = 50
    seed: int = 1337


def parse(arguments: list[str]) -> Settings:
    """The settings in key=value arguments.

    Raises: ConfigError: if a key is unknown, a value has another type, or run is missing.
    """
    try:
        settings: Any = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_cli(arguments))
        if OmegaConf.is_missing(settings, "run"):
            raise ConfigError("run=<run directory> is missing")
        found: Settings = OmegaConf.to_object(settings)  # type: ignore[assignment]  # a Settings
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).partition("\n")[0]) from None
    for name, least in (("tokens", 0), ("temperature", 0), ("top_k", 1)):
        value = getattr(found, name)
        if value is not None and value < least:
            raise ConfigError(f"{name}={value} must be >= {least}")
    return found


def continuation(settings: Settings) -> str:
    """The prompt and what the newest checkpoint of the run makes of it.

    Raises: ValueError: if the run, its data or its checkpoints are not there or damaged.
    """
    folder = Path(settings.run)
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"run={folder} is no run directory: it has no {CONFIG}")
    config: Any = OmegaConf.load(folder / CONFIG)
    saved = CheckpointStore(folder / "checkpoints", keep=1, permanent_every=None).newest()
    if saved is None:
        raise CheckpointError(f"run={folder} has no checkpoint yet")
    tokenizer = read_tokenizer(folder / TOKENIZER)
    model = GPT(model_config(config, tokenizer.vocab_size)).eval()
    saved.read_into({f"model.{name}": p.detach() for name, p in model.named_parameters()})
    prompt = torch.tensor([tokenizer.encode(config.data.prompt if settings.prompt is None else settings.prompt)])
    generator = torch.Generator().manual_seed(settings.seed)
    tokens = model.generate(
        prompt, settings.tokens, temperature=settings.temperature, top_k=settings.top_k, generator=generator
    )
    return tokenizer.decode(tokens[0].tolist())


def main(arguments: list[str]) -> int:
    """Prints the continuation; the exit status, 2 for bad input."""
    try:
        print(continuation(parse(arguments)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

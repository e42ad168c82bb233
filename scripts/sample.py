"""Continues a prompt with a trained model: python scripts/sample.py run=runs/<name> [prompt='class '] [key=value ...].

Text is printed as it is drawn. Nothing of the run is changed or executed.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

import torch

from assembly.trained import RUN, Trained, find_run, read_trained
from configs import ConfigError, answer
from configs.arguments import described, setting
from configs.arguments import parse as parsed
from files.paths import expanded
from files.reading import MIB, read_text
from model.generation import Sampling, stream
from trainer.environment import pick_device

SEPARATOR = "-" * 20
MOST_PROMPT_BYTES = MIB


@dataclass
class Settings:
    """The settings on the command line."""

    run: str = setting(RUN)
    prompt: str | None = setting("as typed; an empty one begins a document; without it, the data set's own", None)
    prompt_file: str | None = setting("the prompt from a UTF-8 file instead, - from standard input", None)
    n: int = setting("samples; each has random numbers of its own, so that n adds samples and changes none", 1, least=1)
    tokens: int = setting("to add to the prompt at most", 200, least=0)
    stop: list[str] = setting("ends a sample before this text; '<|endoftext|>' ends a document; may be repeated", [])
    temperature: float = setting("0 always takes the likeliest token", 0.8)
    top_k: int | None = setting("draws among so many of the likeliest tokens; null: among all", 50)
    top_p: float | None = setting("draws among the likeliest tokens that together have this probability", None)
    seed: int = setting("of the random numbers", 1337, least=0)
    device: str = setting("auto: a GPU if there is one", "auto", choices=("auto", "cpu", "cuda"))
    cache: bool = setting("false: all tokens pass through the model again for each new one; the same, but slower", True)
    model: str | None = setting("import path of the run's model if that is a class of yours; it is run", None)

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn. Raises: ValueError: if a number is out of range."""
        return Sampling(self.temperature, self.top_k, self.top_p)


def parse(arguments: Sequence[str]) -> Settings:
    """Returns the settings in key=value arguments.

    Raises: ValueError: if a key is unknown, a value has another type or is out of range, or run is missing.
    """
    found = parsed(Settings, arguments)
    if found.prompt is not None and found.prompt_file is not None:
        raise ConfigError("prompt and prompt_file are both given; leave one out")
    if "" in found.stop:
        raise ConfigError("stop= is empty; give a text, or leave it out")
    found.sampling  # noqa: B018  # checks its numbers
    return found


def samples(settings: Settings) -> Iterator[Iterator[str]]:
    """Yields n samples by the run's model, each the prompt and its continuation, piece by piece.

    Raises: ValueError: if the run, its tokenizer or its checkpoints are missing or damaged.
    """
    place = find_run(settings.run)
    prompt = read_prompt(settings, place.config)
    device = pick_device(settings.device)
    trained = read_trained(place, allowed=settings.model)
    trained.model.to(device)
    for n in range(settings.n):
        yield sample(trained, prompt, settings, torch.Generator(device).manual_seed(stream_seed(settings.seed, n)))


def sample(trained: Trained, prompt: str, settings: Settings, generator: torch.Generator) -> Iterator[str]:
    """Yields the prompt and its continuation, piece by piece."""
    tokenizer, ids = trained.tokenizer, trained.tokenizer.encode(prompt)
    yield tokenizer.decode(ids)
    start = torch.tensor([ids or [tokenizer.eot]], device=generator.device)  # no prompt: a document begins
    tokens = stream(
        trained.model, start, settings.tokens, settings.sampling, generator=generator, use_cache=settings.cache
    )
    yield from until(tokenizer.decode_each(int(token) for token in tokens), settings.stop)


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yields the text of the pieces before the first of the stops; withholds what may be the beginning of one."""
    held = ""
    for piece in pieces:
        held += piece
        if found := [place for stop in stops if (place := held.find(stop)) >= 0]:
            yield held[: min(found)]
            return
        n = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        yield held[: len(held) - n]
        held = held[len(held) - n :]
    yield held


def read_prompt(settings: Settings, config: dict[str, Any]) -> str:
    """Returns the prompt. Raises: ValueError: if prompt_file does not exist, or is no text."""
    if settings.prompt_file == "-" and sys.stdin is None:
        raise ConfigError("prompt_file=- reads standard input, which is closed; give prompt=, or another file")
    if settings.prompt_file == "-":
        return _decoded(sys.stdin.buffer.read(MOST_PROMPT_BYTES + 1))
    if settings.prompt_file is not None:
        path = expanded(settings.prompt_file, "prompt_file")
        text = read_text(path, most_bytes=MOST_PROMPT_BYTES, may_be_link=True)
        if text is None:
            raise ConfigError(f"prompt_file={path} does not exist")
        return text
    if settings.prompt is not None:
        return settings.prompt
    data = config.get("data")
    prompt = data.get("prompt") if isinstance(data, dict) else None
    return prompt if isinstance(prompt, str) else ""


def _decoded(content: bytes) -> str:
    if len(content) > MOST_PROMPT_BYTES:
        raise ConfigError(f"standard input has more than {MOST_PROMPT_BYTES:,} bytes; a prompt has at most that many")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8 text: byte {error.start}") from None


def stream_seed(seed: int, n: int) -> int:
    """Returns the seed of sample n: the seed itself for the first; others such that no two seeds share a sample."""
    return seed if n == 0 else int.from_bytes(hashlib.sha256(f"{seed} {n}".encode()).digest()[:7], "big")


def main(arguments: list[str]) -> int:
    """Prints the samples; returns the exit status, 2 for bad input."""
    return answer(arguments, f"{__doc__}\n{described(Settings)}", _main)


def _main(arguments: list[str]) -> int:
    settings = parse(arguments)
    for n, pieces in enumerate(samples(settings)):
        if n:
            print(SEPARATOR)
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

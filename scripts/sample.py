"""Continues a prompt with a trained model: python scripts/sample.py run=runs/<name> [prompt='class '] [key=value ...].

run          the run directory; its newest checkpoint is read, and nothing of it is changed or run
prompt       taken as typed, whatever it is; without it, the data set's own; an empty one begins a document
prompt_file  the prompt from a UTF-8 file instead, - from standard input
n            how many samples, 1; each has random numbers of its own, so that n adds samples and changes none
tokens       to add to the prompt, 200
temperature  0.8; 0 always takes the likeliest token
top_k        samples among so many of the likeliest tokens, 50; null: among all
seed         1337
model        the import path of the run's model if that is a class of yours: others than ours are not built unasked
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.nn.modules.module import register_module_parameter_registration_hook

from configs import ConfigError, answer, plug_in, read_config
from configs.plug_ins import TARGET, is_trusted
from data import read_tokenizer
from data.tokenizers import Tokenizer
from files.errors import ReadingError, shown
from files.paths import expanded
from files.reading import MIB, opened, read_text
from model import LanguageModel
from trainer.checkpoint import CheckpointError, CheckpointStore, Saved
from trainer.run_directory import CONFIG, TOKENIZER

SEPARATOR = "-" * 20
MOST_PROMPT_BYTES = MIB
MOST_SEED = 1 << 63
MOST_BYTES, MOST_JSON_BYTES = 1 << 44, 64 * MIB  # of files with tensors; of others


@dataclass
class Settings:
    """The settings on the command line."""

    run: str = MISSING
    prompt: str | None = None  # null: that of the data set
    prompt_file: str | None = None
    n: int = 1
    tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = 50
    seed: int = 1337
    model: str | None = None  # null: a class of this project


AT_LEAST = (("n", 1), ("tokens", 0), ("temperature", 0), ("top_k", 1), ("seed", 0))


def parse(arguments: Sequence[str]) -> Settings:
    """Returns the settings in key=value arguments; texts are taken as typed.

    Raises: ConfigError: if a key is unknown, a value has another type, or run is missing.
    """
    given: dict[str, Any] = {}
    for argument in arguments:
        key, is_pair, value = argument.partition("=")
        if not is_pair:
            raise ConfigError(f"{shown(argument)!r} must read key=value, for example run=runs/<name>")
        given[key] = value
    found = _typed(given)
    if "run" not in given:
        raise ConfigError("run=<run directory> is missing")
    if found.prompt is not None and found.prompt_file is not None:
        raise ConfigError("prompt and prompt_file are both given; leave one out")
    for name, least in AT_LEAST:
        value = getattr(found, name)
        if value is not None and not least <= value < MOST_SEED:
            raise ConfigError(f"{name}={value} must be >= {least}" + " and less than 2**63" * (value > least))
    return found


def _typed(given: dict[str, str]) -> Settings:
    known = [field.name for field in fields(Settings)]
    texts = {key: value for key, value in given.items() if key in ("run", "prompt", "prompt_file", "model")}
    numbers: Any = OmegaConf.structured(Settings)
    for key, value in given.items():
        if key not in known:
            near = [name for name in known if key and name.startswith(key)] or get_close_matches(key, known, 1)
            hint = f"the nearest valid one is {near[0]!r}" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"unknown key {shown(key)!r}; {hint}")
        if key not in texts:
            try:
                numbers[key] = None if (key, value) == ("top_k", "null") else value
            except OmegaConfBaseException:
                wanted = "a number" if key == "temperature" else "a whole number"
                raise ConfigError(f"{key}={shown(value)} must be {wanted}") from None
    numbers.run = ""
    found: Settings = OmegaConf.to_object(numbers)  # type: ignore[assignment]  # a Settings
    for key, text in texts.items():
        setattr(found, key, text)
    return found


def continuations(settings: Settings) -> Iterator[str]:
    """Yields the prompt with a continuation by the newest checkpoint of the run, n times.

    Raises: ValueError: if the run, its tokenizer or its checkpoints are missing or damaged.
    """
    folder = expanded(settings.run, "run")
    if not (folder / CONFIG).exists():
        raise ConfigError(f"run={folder} is no run directory: it has no {CONFIG}")
    config = read_config(folder / CONFIG)
    prompt = read_prompt(settings, config)
    store = CheckpointStore(folder / "checkpoints", keep=1, permanent_every=None)
    if not store.paths():
        raise CheckpointError(f"run={folder} has no checkpoint yet")
    check_files([folder / TOKENIZER, *(file for path in store.paths() for file in path.glob("*"))])
    tokenizer = read_tokenizer(folder / TOKENIZER)
    node = model_node(config, settings, tokenizer, folder / CONFIG)
    model = newest_model(store, node, folder / CONFIG)
    ids = torch.tensor([tokenizer.encode(prompt) or [tokenizer.eot]])
    n_shown = (
        ids.shape[1] if prompt else 0
    )  # without a prompt the sample begins after an end of text, which is not shown
    for n in range(settings.n):
        generator = torch.Generator().manual_seed(stream_seed(settings.seed, n))
        tokens = model.generate(
            ids, settings.tokens, temperature=settings.temperature, top_k=settings.top_k, generator=generator
        )
        yield tokenizer.decode(tokens[0, 0 if n_shown else 1 :].tolist())


def check_files(paths: Iterable[Path]) -> None:
    """Checks files before they are read. Raises: ReadingError: if one is no regular file, or is too large."""
    for path in paths:
        file = opened(path, most_bytes=MOST_JSON_BYTES if path.suffix == ".json" else MOST_BYTES)
        if file is not None:
            file.close()


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


def model_node(config: dict[str, Any], settings: Settings, tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """Returns the configuration's node of the model, with vocab_size.

    Raises: ReadingError: if there is none, or it names a class that the user has not allowed.
    """
    node = config.get("model")
    if not isinstance(node, dict):
        raise ReadingError(f"{path}: model is none that can be built: it is {shown(node)}")
    target = str(node.get(TARGET))
    if not (is_trusted(target) or target == settings.model):
        raise ReadingError(f"{path}: model is a foreign class; if you trust it, add '{shown(f'model={target}')}'")
    return {**node, "vocab_size": node.get("vocab_size") or tokenizer.vocab_size}


def newest_model(store: CheckpointStore, node: dict[str, Any], path: Path) -> LanguageModel:
    """Returns the model of the newest checkpoint; tries again if the run deletes that meanwhile. Raises: ValueError."""
    while (saved := store.newest()) is not None:
        try:
            return read_model(node, saved, path)
        except CheckpointError:
            if saved.path.is_dir():
                raise
    raise CheckpointError(f"{store.folder} has no checkpoint any more")


def read_model(node: dict[str, Any], saved: Saved, path: Path) -> LanguageModel:
    """Returns the model of a checkpoint.

    Raises: ReadingError: if the config.yaml at path does not describe it, which is checked before memory is allocated,
    or a parameter is not finite. CheckpointError: if the checkpoint cannot be read.
    """
    shapes = {name: shape for name, (shape, _) in saved.group("model").items()}
    try:
        with torch.device("meta"), at_most(len(shapes)):
            fits = shapes == {name: tuple(p.shape) for name, p in plug_in(node).named_parameters()}
    except TooManyError:
        fits = False
    except (ConfigError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ReadingError(f"{path}: model is none that can be built: {error}") from None
    if not fits:
        raise ReadingError(f"{path}: model has other shapes than the checkpoint {saved.path}")
    model: LanguageModel = plug_in(node).eval()
    saved.read_into({f"model.{name}": p.detach() for name, p in model.named_parameters()})
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ReadingError(f"{saved.path}: {name} has numbers that are not finite; the run has diverged")
    return model


class TooManyError(BaseException):
    """Raised if a model has too many parameters; no Exception, which hydra would wrap in an error of its own."""


@contextmanager
def at_most(n: int) -> Iterator[None]:
    """While entered, stops the construction of a model with many more than n parameters, which might take very long.

    Raises: TooManyError: if more than twice n are registered; a tied parameter is registered before it is replaced.
    """
    registered = 0

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
        nonlocal registered
        registered += 1
        if registered > 2 * n:
            raise TooManyError

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def stream_seed(seed: int, n: int) -> int:
    """Returns the seed of sample n: the seed itself for the first; others such that no two seeds share a sample."""
    return seed if n == 0 else int.from_bytes(hashlib.sha256(f"{seed} {n}".encode()).digest()[:7], "big")


def main(arguments: list[str]) -> int:
    """Prints the continuations; returns the exit status, 2 for bad input."""
    return answer(arguments, __doc__, _main)


def _main(arguments: list[str]) -> int:
    settings = parse(arguments)
    for n, text in enumerate(continuations(settings)):
        if n:
            print(SEPARATOR)
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The model that a run has trained, read from one of its checkpoints; nothing of the run is changed or executed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from configs import ConfigError, plug_in, read_config
from configs.plug_ins import TARGET, is_trusted
from configs.start import STEP
from data import read_tokenizer
from data.tokenizers import Tokenizer
from files.errors import ReadingError, shown
from files.paths import expanded
from files.reading import MIB, opened
from model import LanguageModel
from trainer.checkpoint import CheckpointError, CheckpointStore, Saved
from trainer.manifest import step_of
from trainer.run_directory import CHECKPOINTS, CONFIG, TOKENIZER

RUN = "run directory; its newest checkpoint is read, RUN@STEP: that of a step"  # what scripts say of run=
MOST_BYTES, MOST_JSON_BYTES = 1 << 44, 64 * MIB  # of files with tensors; of others


class Trained(NamedTuple):
    """A run's model, and what it is used with."""

    folder: Path
    step: int  # of the checkpoint
    state: Mapping[str, Any]  # what the checkpoint says besides tensors
    config: dict[str, Any]  # the content of config.yaml, plain, with all defaults
    tokenizer: Tokenizer
    model: LanguageModel  # on the CPU, in evaluation mode
    settings: dict[str, Any]  # the configuration's node of the model, with vocab_size


class RunPlace(NamedTuple):
    """A run that exists. step: of the checkpoint that is meant; None: the newest one."""

    folder: Path
    step: int | None
    config: dict[str, Any]


def find_run(run: str) -> RunPlace:
    """Returns the run that RUN or RUN@STEP names. Raises: ConfigError: if there is none."""
    folder, step = expanded(run, "run"), None
    if not folder.exists() and (found := STEP.fullmatch(run)):
        folder, step = expanded(found[1], "run"), int(found[2])
    if not (folder / CONFIG).exists():
        raise ConfigError(f"run={folder} is no run directory: it has no {CONFIG}")
    return RunPlace(folder, step, read_config(folder / CONFIG))


def read_trained(place: RunPlace, *, allowed: str | None = None) -> Trained:
    """Returns the model of the run. allowed: the import path of a class of models that may be built beside ours.

    Raises: ValueError: if the run, its tokenizer or its checkpoints are missing or damaged.
    """
    folder, config = place.folder, place.config
    store, paths = checkpoints_of(folder)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    node = model_node(config, allowed, tokenizer, folder / CONFIG)
    if place.step is None:
        saved, model = newest_model(store, node, folder / CONFIG)
    elif place.step in paths:
        saved = store.read(paths[place.step])
        model = read_model(node, saved, folder / CONFIG)
    else:
        listed = ", ".join(map(str, paths))
        raise CheckpointError(f"run={folder} has no checkpoint of step {place.step}; it has those of steps {listed}")
    return Trained(folder, step_of(saved.path), saved.state, config, tokenizer, model, node)


def checkpoints_of(folder: Path) -> tuple[CheckpointStore, dict[int, Path]]:
    """Returns the store of a run's checkpoints, whose files are known to be regular, and the checkpoints by step.

    Raises: CheckpointError: if there is none. ReadingError: if a file is no regular file, or is too large.
    """
    store = CheckpointStore(folder / CHECKPOINTS, keep=1, permanent_every=None)
    paths = {step_of(path): path for path in store.paths()}
    if not paths:
        raise CheckpointError(f"run={folder} has no checkpoint yet")
    check_files([folder / TOKENIZER, *(file for path in paths.values() for file in path.glob("*"))])
    return store, paths


def check_files(paths: Iterable[Path]) -> None:
    """Checks files before they are read. Raises: ReadingError: if one is no regular file, or is too large."""
    for path in paths:
        file = opened(path, most_bytes=MOST_JSON_BYTES if path.suffix == ".json" else MOST_BYTES)
        if file is not None:
            file.close()


def model_node(config: dict[str, Any], allowed: str | None, tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """Returns the configuration's node of the model, with vocab_size.

    Raises: ReadingError: if there is none, or it names a class that the user has not allowed.
    """
    node = config.get("model")
    if not isinstance(node, dict):
        raise ReadingError(f"{path}: model is none that can be built: it is {shown(node)}")
    target = str(node.get(TARGET))
    if not (is_trusted(target) or target == allowed):
        raise ReadingError(f"{path}: model is a foreign class; if you trust it, add '{shown(f'model={target}')}'")
    return {**node, "vocab_size": node.get("vocab_size") or tokenizer.vocab_size}


def newest_model(store: CheckpointStore, node: dict[str, Any], path: Path) -> tuple[Saved, LanguageModel]:
    """Returns the newest checkpoint and its model; tries again if the run deletes that meanwhile.

    Raises: ValueError: if there is none, or it cannot be read.
    """
    while (saved := store.newest()) is not None:
        try:
            return saved, read_model(node, saved, path)
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

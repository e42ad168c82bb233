"""What a layout of another program is: it reads weights of a GPT-2, and writes what a run has trained."""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data.tokenizers import Tokenizer
from files.errors import one_line, shown
from files.writing import fsync, fsync_folder
from model import LanguageModel

GPT2 = "model.GPT"  # the import path of the class whose weights layouts hold
VOCABULARY = frozenset({"wte.weight", "head.weight"})  # its parameters with a row for each token id


class InterchangeError(ValueError):
    """Raised if weights cannot be read, written or used; one clear line."""


@dataclass(frozen=True)
class Weights:
    """The weights of a GPT-2 that another program trained.

    settings: those of model.GPT that decide what it computes; vocab_size counts the rows of the embedding. tensors: by
    the names of model.GPT's parameters, linear weights (out, in), fp32. tokens: the bytes of each token id, as far as
    the files say; None: they say nothing.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    tokens: Mapping[int, bytes] | None = None


@dataclass(frozen=True)
class Trained:
    """What a run has trained, to be written.

    settings: all of the model's, by the names of its constructor. result: of the checkpoint: step, val/loss, ...
    """

    model: LanguageModel
    settings: Mapping[str, Any]
    tokenizer: Tokenizer
    card: str  # the model card, Markdown
    result: Mapping[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Returns the parameters by name, on the CPU, the vocabulary's matrices without rows of padding."""
        found = {name: p.detach().cpu() for name, p in self.model.named_parameters()}
        for name in VOCABULARY & found.keys():
            found[name] = found[name][: self.model.vocab_size]
        return {name: tensor.contiguous() for name, tensor in found.items()}


class Layout(ABC):
    """A program's files of weights."""

    what: str  # in words, for messages
    usage: str  # what to do with the files, for the model card

    @abstractmethod
    def check(self, path: Path) -> None:
        """Checks that there is something of this layout, without reading it. Raises: InterchangeError."""

    @abstractmethod
    def read(self, path: Path) -> Weights:
        """Returns the weights; executes nothing of what it reads. Raises: InterchangeError: if it is damaged."""

    @abstractmethod
    def refusals(self, settings: Mapping[str, Any]) -> list[str]:
        """Returns the settings of model.GPT that the layout cannot express, each as "model.key=value: why"."""

    @abstractmethod
    def write(self, trained: Trained, folder: Path) -> None:
        """Writes the files into an empty folder; only a model that check_settings() lets through.

        Raises: OSError: if a file cannot be written.
        """

    def check_settings(self, target: str, settings: Mapping[str, Any]) -> None:
        """Checks that the layout can express a model: target, its class, and all its settings.

        Raises: InterchangeError: that names what it cannot express.
        """
        found = self.refusals(settings) if target == GPT2 else [f"model._target_={shown(target)}: it is no {GPT2}"]
        if found:
            raise InterchangeError(f"{self.what} cannot express this model: {'; '.join(found)}")

    def export(self, trained: Trained, out: Path) -> None:
        """Writes the files into the new folder out, which is complete or not there.

        Raises: InterchangeError: if out is there and no empty folder, or cannot be written.
        """
        folder = out.absolute()
        temporary = folder.with_name(f".{folder.name[:50]}.{os.getpid()}.tmp")  # names may have 255 bytes
        try:
            if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
                raise InterchangeError(f"out={out} exists; choose a new folder, or delete that one")
            temporary.mkdir(parents=True)
            try:
                self.write(trained, temporary)
                for file in temporary.iterdir():
                    fsync(file)
                temporary.replace(folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            fsync_folder(folder.parent)
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise InterchangeError(f"out={out} cannot be written: {reason}; choose another folder") from error


def differing(settings: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[str]:
    """Returns where settings differ from those that a layout takes for granted, as refusals() does."""
    return [
        f"model.{key}={shown(settings.get(key))}: it has {shown(each)} alone"
        for key, each in fixed.items()
        if settings.get(key) != each
    ]

"""Files of tensors that other programs wrote, read without executing anything, and checked before they are used."""

import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter

from files.errors import one_line, shown
from interchange.layout import InterchangeError

HEAD, EMBEDDING = "head.weight", "wte.weight"  # of model.GPT


def unpickled(file: Path) -> Any:
    """Returns the tensors and plain values that torch.save wrote; executes nothing. Raises: InterchangeError."""
    _check_readable(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InterchangeError(
            f"{file} holds more than tensors and plain values, or is damaged or no file of torch.save; nothing of it "
            "was executed or read: save it again with the weights alone"
        ) from None
    except Exception as error:  # of many types, for damaged files
        raise _damaged(file, "torch.save", error) from None


def safetensors(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file of safetensors. Raises: InterchangeError."""
    _check_readable(file)
    try:
        return load_file(file)
    except Exception as error:  # SafetensorError, and others for types that torch does not have
        raise _damaged(file, "safetensors", error) from None


def _check_readable(file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InterchangeError(f"{file} cannot be read: {reason}; it must be a file with weights") from None


def _damaged(file: Path, writer: str, error: Exception) -> InterchangeError:
    reason = "it is empty" if file.stat().st_size == 0 else f"{type(error).__name__}: {one_line(error)[:200]}"
    wrong = f"it is no file of {writer}, or a part of one ({reason})"
    return InterchangeError(f"{file} cannot be read: {wrong}; copy, download or save it again")


def named(stored: Iterable[tuple[Any, Any]], rename: Callable[[str], str | None], where: str) -> dict[str, Tensor]:
    """Returns tensors, fp32, by model.GPT's names of its parameters.

    rename: gives these for the stored names; None: the tensor is left out, whatever it holds. where: the file.

    Raises: InterchangeError: if something is no plain tensor of floating-point numbers, or a parameter is there twice.
    """
    found: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for key, tensor in stored:
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            what = f"{shown(key)}, a {type(tensor).__name__}"
            raise InterchangeError(f"{where} must hold tensors by name, not {what}; save it again with these alone")
        name = rename(key)
        if name is None:
            continue
        if name in found:
            both = key if origins[name] == key else f"{origins[name]} and {key}"
            raise InterchangeError(f"{where} has the weight {name} twice ({both}); save it again with one of them")
        found[name], origins[name] = _fp32(tensor, key, where), key
    return found


def _fp32(tensor: Tensor, key: str, where: str) -> Tensor:
    plain = type(tensor) in (Tensor, Parameter) and tensor.layout == torch.strided and not tensor.is_nested
    if plain and tensor.device.type == "cpu" and tensor.is_floating_point():
        return tensor.detach().float()
    kinds = [type(tensor).__name__, tensor.layout, tensor.dtype, f"on {tensor.device}"]
    kind = ", ".join(str(each).removeprefix("torch.") for each in kinds)
    raise InterchangeError(
        f"{where}: the weight {shown(key)} must be a dense tensor of floating-point numbers, not {kind}; save it again "
        "as fp32, fp16 or bf16"
    )


def is_tied(tensors: Mapping[str, Tensor]) -> bool:
    """Returns whether the head is the embedding: it is not stored, or has the same numbers."""
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if head is None or embedding is None:
        return head is None
    return head.shape == embedding.shape and torch.allclose(head, embedding, rtol=0, atol=0, equal_nan=True)


def flag(settings: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    """Returns a setting that is true or false. Raises: InterchangeError: if it is anything else."""
    value = settings.get(key, default)
    if not isinstance(value, bool):
        raise InterchangeError(f"{where}: {key}={shown(value)} must be true or false; correct it there")
    return value

"""Whether weights of another program fit a model of ours, and copies them into it."""

from collections.abc import Mapping
from typing import Any

from data.tokenizers import EOT, Tokenizer
from files.errors import shown
from interchange.layout import GPT2, VOCABULARY, InterchangeError, Weights
from model import LanguageModel

MOST_PADDING = 127  # rows that others add to a vocabulary, for speed
POSITIONS = "wpe.weight"


def load(weights: Weights, model: LanguageModel, node: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> None:
    """Overwrites the model's parameters, full tensors, with the weights.

    Of the vocabulary's rows those that the model has are taken, of the positions the first block_size. node: the
    configuration of the model, complete. tokenizer: the data's. where: names the weights, for messages.

    Raises: InterchangeError: if the weights are of another model or another vocabulary, or are not finite.
    """
    tensors = dict(weights.tensors)
    if node.get("bias") is False:
        tensors = {name: each for name, each in tensors.items() if not (name.endswith("bias") and not each.any())}
    _check_model(weights.settings, node, where, has_biases=any(name.endswith("bias") for name in tensors))
    _check_vocabulary(weights, model.vocab_size, tokenizer, where)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if odd := sorted(parameters.keys() ^ tensors.keys()):
        raise InterchangeError(f"{where}: the weight {odd[0]} is {'missing' if odd[0] in parameters else 'not known'}")
    for name, parameter in parameters.items():
        wanted, found = parameter[: rows_of(name, model)], tensors[name]
        found = found[: rows_of(name, model)] if found.ndim == wanted.ndim else found
        if found.shape != wanted.shape:
            shapes = f"{tuple(found.shape)} and should be {tuple(wanted.shape)}"
            raise InterchangeError(f"{where}: the weight {name} has the shape {shapes}; save it again")
        if not found.isfinite().all():
            raise InterchangeError(f"{where}: the weight {name} has numbers that are not finite")
        wanted.copy_(found)


def rows_of(name: str, model: LanguageModel) -> int | None:
    """Returns how many rows of a parameter mean something; None: all."""
    return model.vocab_size if name in VOCABULARY else model.block_size if name == POSITIONS else None


def _check_model(settings: Mapping[str, Any], node: Mapping[str, Any], where: str, *, has_biases: bool) -> None:
    """Raises: InterchangeError: if the configuration's model is another one, with what makes it the same."""
    if node.get("_target_") != GPT2:
        raise InterchangeError(f"{where} is a GPT-2, but model._target_={shown(node.get('_target_'))}; choose a GPT")
    wanted = {key: value for key, value in settings.items() if key not in ("vocab_size", "block_size")}
    wanted["bias"] = wanted["bias"] and (has_biases or node.get("bias") is not False)
    if node["block_size"] > settings["block_size"]:
        wanted["block_size"] = settings["block_size"]
    odd = {key: value for key, value in wanted.items() if node.get(key) != value}
    if odd:
        differing = "; ".join(f"model.{key}={shown(node.get(key))} (there: {shown(each)})" for key, each in odd.items())
        remedy = " ".join(f"model.{key}={shown(each)}" for key, each in odd.items())
        raise InterchangeError(f"{where} has another model: {differing}; add {remedy}")


def _check_vocabulary(weights: Weights, vocab_size: int, tokenizer: Tokenizer, where: str) -> None:
    rows, tokens = weights.settings["vocab_size"], weights.tokens
    if tokens is not None:
        ours = {id: tokenizer.token_bytes(id) for id in range(tokenizer.eot)} | {tokenizer.eot: EOT.encode()}
        if (odd := next((id for id, token in ours.items() if tokens.get(id) != token), None)) is not None:
            raise InterchangeError(
                f"{where} has another tokenizer than the data: its token {odd} is {shown(tokens.get(odd))}, the data's "
                f"{shown(ours[odd])}; prepare the data with that tokenizer (GPT-2's is data/tokenizer=gpt2)"
            )
    if not vocab_size <= rows <= vocab_size + MOST_PADDING:
        raise InterchangeError(
            f"{where} has {rows} token ids, the model {vocab_size} (model.vocab_size, by default the data's); prepare "
            "the data with the tokenizer of the weights (GPT-2's is data/tokenizer=gpt2)"
        )

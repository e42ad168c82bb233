"""Builds the model that a configuration describes."""

import torch

from configs import RunConfig, plug_in
from data import DataError
from model import LanguageModel


def model_of(config: RunConfig, vocab_size: int) -> LanguageModel:
    """Returns the model, initialised from torch's global generator.

    Raises: ConfigError: if the option's values do not fit together.
    """
    model: LanguageModel = plug_in(config.model, vocab_size=vocab_size)
    return model


def meta_model(config: RunConfig, vocab_size: int) -> LanguageModel:
    """Returns the model on the meta device, for the shapes and number of its parameters. Raises: as model_of."""
    with torch.device("meta"):
        return model_of(config, vocab_size)


def vocab_size_of(config: RunConfig, n_ids: int) -> int:
    """Returns the number of token ids that the model has, for data with n_ids of them.

    Raises: DataError: if model.vocab_size is set and too small.
    """
    wanted: int | None = config.model.get("vocab_size")
    if wanted is not None and wanted < n_ids:
        raise DataError(
            f"model.vocab_size={wanted} is smaller than the data's vocabulary of {n_ids}; "
            "leave it out (null), or prepare the data with another tokenizer"
        )
    return wanted or n_ids

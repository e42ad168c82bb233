"""Finds or prepares the data set that a configuration names, and opens this rank's loader."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assembly.model import meta_model, vocab_size_of
from configs import ReadingError, RunConfig, plug_in
from configs.plug_ins import TARGET, is_trusted
from configs.schema import typed
from data import (
    DataError,
    TokenDataset,
    TokenLoader,
    dataset_dir,
    is_prepared,
    missing_dataset,
    prepare,
    warn_if_changed,
)
from data.errors import MissingSource
from trainer.parallel import Strategy


def data_path(config: RunConfig, *, prepared: bool = True) -> Path:
    """Returns the folder of the configuration's data set.

    prepared: also prepares an embedded source if that has not been done; and the main rank warns if files of the
    source have changed since they were prepared.
    """
    source, tokenizer = plug_in(config.data.source), plug_in(config.data.tokenizer)
    settings = config.data.split
    root = Path(config.data.root)
    path = dataset_dir(root, source, tokenizer, **settings)
    if not prepared:
        return path
    if source.embedded and not is_prepared(path):
        return prepare(source, tokenizer, root, workers=config.data.workers, **settings)
    if not path.exists():
        try:
            source.files()
        except MissingSource as error:
            raise DataError(f"{missing_dataset(path)}; and {error}") from None
    if os.environ.get("RANK", "0") == "0":
        warn_if_changed(source, path)
    return path


def provide_data(config: RunConfig) -> None:
    """Prepares an embedded source where that has not been done.

    Raises: DataError: if the data set is missing, which the user has to prepare.
    """
    if not is_prepared(path := data_path(config)):
        raise missing_dataset(path)


def data_path_of(content: Mapping[str, Any], path: Path) -> Path:
    """Returns the folder of the data set that a run's config.yaml names; prepares nothing. content: that of the file.

    Raises: ReadingError: if it names none, or a class that is not ours, which is not looked at.
    """
    data = content.get("data")
    if not isinstance(data, dict):
        raise ReadingError(f"{path} names no data set")
    for key in ("source", "tokenizer"):
        if not isinstance(data.get(key), dict) or not is_trusted(str(data[key].get(TARGET))):
            raise ReadingError(f"{path}: data.{key} is no class of ours; name the data set by data=<its folder>")
    try:
        return data_path(typed(content), prepared=False)
    except TypeError as error:
        raise ReadingError(f"{path} names no data set: {error}") from None


def open_data(config: RunConfig, strategy: Strategy) -> tuple[TokenDataset, TokenDataset, TokenLoader]:
    """Returns the training and the validation split, verified, and this rank's loader."""
    path = data_path(config)
    train_data, val_data = TokenDataset.open(path, "train"), TokenDataset.open(path, "val")
    model = meta_model(config, vocab_size_of(config, train_data.vocab_size))
    return train_data, val_data, open_loader(config, train_data, model.block_size, strategy)


def open_loader(config: RunConfig, train_data: TokenDataset, seq_len: int, strategy: Strategy) -> TokenLoader:
    """Returns this rank's loader of the training data."""
    return TokenLoader(
        train_data,
        seq_len=seq_len,
        global_batch=config.global_batch,
        micro_batch=config.micro_batch,
        seed=config.seed,
        order=config.data.order,
        device=strategy.device,
        data_rank=strategy.data_rank,
        data_ranks=strategy.data_ranks,
    )

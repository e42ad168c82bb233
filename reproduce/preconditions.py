"""What all runs of a claim need, checked before the first one starts: device, optimizer, schedule, data, tokenizer."""

import json
from typing import Any

from assembly.data import data_path
from assembly.model import meta_model, vocab_size_of
from configs import RunConfig, flat, plug_in
from data import TokenDataset, eval_batches, load_tokenizer
from optim.build import build
from reproduce.claim import Claim
from reproduce.composed import composed
from reproduce.forecast import model_of
from reproduce.mistakes import ClaimError
from reproduce.protocols import expected, of
from trainer import environment

MACHINE = ("optim", "model", "data", "schedule", "device", "precision", "max_steps")
DATA = ("data", "model", "eval_sequences", "micro_batch")


def check(claim: Claim[Any], *, is_elsewhere: bool = False) -> None:
    """Checks each different setting of the claim's runs once; prepares data that come with Python, if need be.

    is_elsewhere: the runs are on other machines, whose devices this one need not have.

    Raises: ValueError: if a run could not start, in one line.
    """
    configs = [composed(run.overrides) for run in expected(of(claim))]
    check_machine = _check_training if is_elsewhere else _check_machine
    for keys, check_one in ((MACHINE, check_machine), (DATA, _check_data)):
        for config in {_text(config, keys): config for config in configs}.values():
            check_one(config)


def _text(config: RunConfig, keys: tuple[str, ...]) -> str:
    return json.dumps({key: value for key, value in flat(config).items() if key.partition(".")[0] in keys})


def _check_machine(config: RunConfig) -> None:
    environment.pick_precision(config.precision, environment.pick_device(config.device))
    _check_training(config)


def _check_training(config: RunConfig) -> None:
    if remark := getattr(plug_in(config.schedule, max_steps=config.max_steps), "remark", ""):
        raise ClaimError(f"a run would measure nothing: {remark}")
    model = model_of(config)
    parameters = dict(model.named_parameters())
    build(config.optim, parameters, model.roles(), seed=config.seed, global_batch=config.global_batch)


def _check_data(config: RunConfig) -> None:
    path = data_path(config)
    train_data, val_data = TokenDataset.open(path, "train"), TokenDataset.open(path, "val")
    load_tokenizer(path)
    model = meta_model(config, vocab_size_of(config, train_data.vocab_size))
    sizes = {"seq_len": model.block_size, "n_sequences": config.eval_sequences, "micro_batch": config.micro_batch}
    next(eval_batches(val_data, device="cpu", **sizes))  # fails for a slice longer than the data

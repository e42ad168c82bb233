"""Makes the parts of a run from its configuration, and opens its sinks."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from assembly.branch import origin_in, remarks
from assembly.data import open_data
from assembly.model import model_of, vocab_size_of
from assembly.rehearsal import check_optimizer, check_settings
from assembly.run import READING, Run, count_bytes, data_checksums, divergence_of, few_sequences, origin_facts
from assembly.sinks import built_in_sinks, close_on_exit, configured_sinks
from assembly.weights import load_weights
from configs import RunConfig, as_yaml, plug_in
from data import TokenLoader, load_tokenizer
from model.flops import flops_per_token, parameter_count
from optim import build as optimizers
from trainer import environment
from trainer.checkpoint import CheckpointStore
from trainer.clock import Clock
from trainer.garbage import collected_on_request
from trainer.heartbeat_file import PERIOD_SECONDS, HeartbeatFile
from trainer.parallel import Strategy
from trainer.profiling import Profile
from trainer.run_directory import HEARTBEAT, RunDirectory


def open_strategy(config: RunConfig) -> Strategy:
    """Returns the strategy, which connects the ranks; first checks what can be checked without them.

    Raises: ValueError: if the configuration does not allow the run.
    """
    check_settings(config)
    device = environment.pick_device(config.device)
    check_optimizer(config, device)
    strategy: Strategy = plug_in(
        config.parallel,
        device=device,
        precision=environment.pick_precision(config.precision, device),
        compiled=device.type == "cuda" if config.compile == "auto" else config.compile == "true",
        timeout_seconds=config.timeout_seconds,
    )
    return strategy


def set_up(config: RunConfig, strategy: Strategy, directory: RunDirectory, stack: ExitStack) -> Run:
    """Returns a run at step 0; stack: closes its parts.

    Raises: ValueError: if the configuration or the data do not allow the run.
    """
    origin = strategy.ranks.from_main(lambda: origin_in(config, strategy.precision, directory), "checking start_from")
    train_data, val_data, loader = strategy.ranks.main_first(
        lambda: open_data(config, strategy), "preparing or checking the data"
    )
    stack.callback(close_loader, strategy, loader)
    torch.manual_seed(config.seed)
    store = open_store(config, strategy, directory)
    stack.callback(store.wait)
    model = model_of(config, vocab_size_of(config, train_data.vocab_size))
    load_weights(config, origin, model, train_data, store)
    roles = model.roles()
    strategy.prepare(model, model.blocks, config.activation_checkpointing)
    sizes = {"seed": config.seed, "global_batch": config.global_batch}
    run = Run(
        config=config,
        directory=directory,
        train_data=train_data,
        val_data=val_data,
        strategy=strategy,
        loader=loader,
        model=model,
        flops_per_token=flops_per_token(model),
        optimizer=optimizers.build(config.optim, dict(model.named_parameters()), roles, group=strategy.group, **sizes),
        schedule=plug_in(config.schedule, max_steps=config.max_steps),
        store=store,
        divergence=divergence_of(config, strategy),
        clock=Clock(0.0, strategy.synchronize),
        origin=origin,
    )
    with strategy.watch.busy(READING):
        run.bytes_per_token = count_bytes(run)  # fails here if a window is longer than the validation set
    stack.enter_context(collected_on_request())
    return run


def open_store(config: RunConfig, strategy: Strategy, directory: RunDirectory) -> CheckpointStore:
    """Returns the store of the run's checkpoints; every rank must call this."""
    return CheckpointStore(
        directory.checkpoints,
        keep=config.keep_checkpoints,
        permanent_every=config.permanent_every,
        permanent_at=config.save_at or (),
        ranks=strategy.ranks,
        watch=strategy.watch,
    )


def begin(run: Run, stack: ExitStack) -> None:
    """Opens the sinks, writes config.yaml, env.json and tokenizer.json, and prints what will run.

    Raises: ValueError: if the run directory cannot be written, or a sink does not take its settings.
    """
    config, strategy, path = run.config, run.strategy, run.directory.path
    plugged = configured_sinks(run)
    facts = {"precision": strategy.precision, "compiled": strategy.compiled, "data": data_checksums(run)}
    facts |= {"start_from": origin_facts(run)}
    facts |= {"strategy": type(strategy).__name__, "world_size": strategy.world_size}
    tokenizer_json = json.dumps(load_tokenizer(run.train_data.path).to_json())
    described = environment.describe(strategy.device, **facts)
    run.directory.begin(as_yaml(config), described, tokenizer_json)
    n_parameters, where = parameter_count(run.model), environment.device_name(strategy.device)
    ranks = f"{strategy.world_size} ranks, {type(strategy).__name__}, " if strategy.world_size > 1 else ""
    print(f"{n_parameters:,} parameters on {where}, {ranks}{strategy.precision}; run directory {path}")
    if remark := getattr(run.schedule, "remark", ""):  # a user's own class need only have apply()
        print(f"warning: {remark}", file=sys.stderr)
    for line in (*remarks(run), *few_sequences(run)):
        print(line)
    open_heartbeat(run, stack)
    run.sinks = [*built_in_sinks(run), *plugged]
    close_on_exit(stack, run)
    if config.profile:
        strategy.phases = Profile(path, strategy.device, partial(_apart, run))
        stack.callback(strategy.phases.close)


def open_heartbeat(run: Run, stack: ExitStack) -> None:
    """Shows other programs that the run makes progress, from its next step on: the first one also compiles."""
    first, path = run.step, run.directory.path / HEARTBEAT
    period = min(PERIOD_SECONDS, run.config.timeout_seconds / 5)
    stack.callback(HeartbeatFile(path, run.strategy.watch, lambda: run.step > first, period).close)


@contextmanager
def _apart(run: Run) -> Iterator[None]:
    """The context in which a profile is written: training stands still."""
    with run.clock.paused(), run.strategy.watch.busy("writing the profile"):
        yield


def close_loader(strategy: Strategy, loader: TokenLoader) -> None:
    """Closes the loader, which may have to wait for a disk."""
    with strategy.watch.busy(READING):
        loader.close()

"""One training run: python train.py [group=option] [key=value ...], see README and configs/schema.py.

Several ranks: torchrun --standalone --nproc_per_node=N train.py parallel=ddp (or fsdp2).
-m runs every combination of overrides with several values (optim=adamw,soap seed=0,1), each as a process of its own:
--at-once N of them at a time, --ranks N under torchrun. Finished ones are skipped, broken ones continued; a summary,
best first, is printed and written as CSV. --cfg prints the resolved configuration.
Exit status: 0 finished, 2 bad input, 3 diverged, 75 stopped by a signal (the same command continues); of a sweep 0 if
all finished, 75, or that of the first that failed. torchrun itself exits with 1 unless all is well: see result.json.
"""

from configs import from_command_line

if __name__ == "__main__":
    from configs.terminal import protect_output
    from launch.sweep import sweep

    protect_output()

    CONFIG = from_command_line(__file__, __doc__, sweep)  # a misspelt key ends here, before the heavy imports

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record

from configs import RunConfig, as_yaml, differences, flat, plug_in
from data import (
    Batch,
    DataError,
    TokenDataset,
    TokenLoader,
    dataset_dir,
    eval_batches,
    is_prepared,
    load_tokenizer,
    prepare,
    read_tokenizer,
    warn_if_changed,
)
from data.tokenizers import Tokenizer
from launch.stopping import StopRequest
from model import GPT, GPTConfig
from model.flops import flops_per_token, parameter_count
from optim import build as optimizers
from optim.build import OptimizerSet
from optim.curvature import hashed
from trainer import environment
from trainer.allocator import tune_allocator
from trainer.checkpoint import Checkpoint, CheckpointError, CheckpointStore, parameters_sha256
from trainer.clock import Clock
from trainer.console import Console
from trainer.divergence import Divergence
from trainer.metrics import JsonLines, Sink, read_rows
from trainer.parallel import Strategy
from trainer.plot import plot_loss
from trainer.ranks import MainRankError, is_lost_peer, started_processes, wait_for_the_cause
from trainer.run_directory import TOKENIZER, RunDirectory, RunDirectoryError
from trainer.schedule import Schedule

STATUS = {"finished": 0, "bad input": 2, "diverged": 3, "stopped": 75}
LOST = "lost another rank, which was killed or says why; the same command continues from the last checkpoint"
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Run:
    """The parts of a run, and how far it is."""

    config: RunConfig
    directory: RunDirectory
    train_data: TokenDataset
    val_data: TokenDataset
    strategy: Strategy
    loader: TokenLoader
    model: GPT
    optimizer: OptimizerSet
    schedule: Schedule
    store: CheckpointStore
    divergence: Divergence
    clock: Clock
    sinks: list[Sink] = field(default_factory=list)
    clipped_steps: int | Tensor = 0  # whose gradient was longer than grad_clip; counted on the device
    step: int = 0  # the next one to run
    losses: dict[str, float] = field(default_factory=dict)  # the last ones measured
    hints: list[str] = field(default_factory=list)  # what the optimizers' last diagnostics suggest


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy over the micro-batch, nats per token."""
    loss: Tensor = model(batch.inputs, batch.targets)
    return loss


def loop(run: Run, stop: StopRequest) -> str:
    """Trains from run.step to the last one; returns "finished", "stopped" or "diverged"."""
    config, strategy, optimizer = run.config, run.strategy, run.optimizer
    for step in range(run.step, config.max_steps):
        row = evaluate(run) if step % config.eval_every == 0 else {}
        row_start = counters(run)
        torch.manual_seed(hashed(config.seed, step, strategy.rank))  # dropout; so checkpoints need no RNG state
        batches = run.loader.batches(step)
        for estimator in optimizer.estimators:  # curvature at the parameters that the step below updates
            estimator.update(step, batches, strategy.extra_backward)
        loss = strategy.forward_backward(batches, next_token_loss, config.global_batch)
        grad_norm = strategy.clip_grad_norm_(config.grad_clip)
        run.clipped_steps += grad_norm > (config.grad_clip or math.inf)
        lr = run.schedule.apply(optimizer, step)
        is_last = step + 1 == config.max_steps
        log_due = step % config.log_every == 0 or is_last
        is_finite = run.divergence.observe(step, loss, grad_norm)
        strategy.keep_finite(is_finite)
        optimizer.step(measured=log_due, is_finite=is_finite)
        optimizer.zero_grad()
        run.step = step + 1

        is_asked_to_stop = strategy.ranks.any_so_far(stop.asked)
        save_due = run.step % config.save_every == 0 or is_last or is_asked_to_stop
        if (log_due or save_due) and run.divergence.step is not None:
            return "diverged"
        if log_due:
            row |= {"train/loss": float(loss), "lr": lr, "grad_norm": float(grad_norm)} | diagnostics(run)
            row |= {"clipped_steps": int(run.clipped_steps), "skipped_steps": run.divergence.skipped_steps}
        if row:
            write(run, row_start | row)
        if save_due:
            run.losses["train/loss"] = float(loss)
            save(run)
        if is_asked_to_stop and not is_last:
            return "stopped"
    row = evaluate(run)
    write(run, counters(run) | row)
    return end(run)


def end(run: Run) -> str:
    """How a run has ended that has done all its steps."""
    if math.isfinite(run.losses["val/loss"]) and run.strategy.has_finite_parameters():
        return "finished"
    run.divergence.declare(run.step - 1, "parameters or val/loss were not finite after the last step")
    return "diverged"


def evaluate(run: Run) -> dict[str, float]:
    """The loss on the fixed slice of the validation set."""
    with run.clock.paused():
        run.losses["val/loss"] = run.strategy.evaluate(eval_slice(run), next_token_loss)
    return {"val/loss": run.losses["val/loss"]}


def eval_slice(run: Run) -> Iterator[Batch]:
    """The fixed slice, in micro-batches."""
    return eval_batches(
        run.val_data,
        seq_len=run.model.config.block_size,
        n_sequences=run.config.eval_sequences,
        micro_batch=run.config.micro_batch,
        device=run.strategy.device,
        rank=run.strategy.rank,
        world_size=run.strategy.world_size,
    )


def counters(run: Run) -> dict[str, float]:
    """Where the run stands before its next step."""
    seq_len = run.model.config.block_size
    return {
        "step": run.step,
        "tokens": run.step * run.config.global_batch * seq_len,
        "seconds": run.clock.seconds,
        "flops": run.strategy.sequences_computed * seq_len * flops_per_token(run.model.config),
    }


def diagnostics(run: Run) -> dict[str, float]:
    """What optimizer and memory have to say on a log step."""
    values = {key: float(value) for key, value in run.optimizer.diagnostics().items()}
    run.hints = run.optimizer.hints(values)
    own = run.optimizer.state_bytes(), environment.memory_bytes(run.strategy.device)
    of_ranks = zip(*run.strategy.ranks.gather(own), strict=True)
    values |= dict(zip(("optim/state_bytes", "memory/peak_bytes"), map(max, of_ranks), strict=True))
    if (written := run.store.written) is not None:
        values |= {f"checkpoint/{name}": value for name, value in asdict(written).items()}
    return values


def write(run: Run, row: dict[str, float]) -> None:
    """Sends a row to all sinks; one that fails gets no more of them."""
    with run.clock.paused():
        for sink in list(run.sinks):
            try:
                sink.write(row)
            except Exception as error:
                run.sinks.remove(sink)
                reason = f"{type(error).__name__}: {error}"
                log.warning("warning: the sink %s failed (%s) and gets no more rows", type(sink).__name__, reason)


def save(run: Run) -> None:
    """Writes a checkpoint: everything that step run.step and those after it depend on."""
    with run.clock.paused():
        optim_tensors, optim_state = run.optimizer.save_state()
        tensors = {f"model.{name}": p for name, p in run.model.named_parameters()}
        state = counters(run) | {
            "losses": run.losses,
            "optim": optim_state,
            "sequences_computed": run.strategy.sequences_computed,
            "clipped_steps": int(run.clipped_steps),
            "divergence": run.divergence.state(),
            "data": data_checksums(run),
        }
        run.store.save(Checkpoint(tensors | {f"optim.{name}": t for name, t in optim_tensors.items()}, state))


def restore(run: Run) -> None:
    """Continues from the newest checkpoint, if there is one, whatever ranks and strategy wrote it."""
    run.store.remove_temporaries()
    saved = run.store.newest(set_aside=True)
    if saved is None:
        return
    if saved.state["data"] != data_checksums(run):
        raise CheckpointError(
            f"the run in {run.directory.path} was trained on other data (checksum {saved.state['data']['train']}, "
            f"now {run.train_data.checksum}): bring that data set back, or choose another run_dir"
        )
    model = {f"model.{name}": p.detach() for name, p in run.model.named_parameters()}
    state = run.optimizer.empty_state(saved.group("optim"))
    saved.read_into(model | {f"optim.{name}": tensor for name, tensor in state.items()})
    run.optimizer.load_state(state, saved.state["optim"])
    if not run.strategy.has_finite_parameters():
        raise CheckpointError(f"{saved.path} has parameters that are not finite; delete it to go on from one before it")
    run.step = saved.state["step"]
    run.losses = {name: math.nan if loss is None else loss for name, loss in saved.state["losses"].items()}
    run.strategy.sequences_computed = saved.state["sequences_computed"]
    run.clipped_steps = saved.state["clipped_steps"]
    run.divergence = watch(run.config, run.strategy, saved.state["divergence"])
    run.clock = Clock(saved.state["seconds"], run.strategy.synchronize)


def watch(config: RunConfig, strategy: Strategy, saved: dict[str, Any] | None = None) -> Divergence:
    """What ends the run if it diverges."""
    return Divergence(
        strategy.device, max_nonfinite=config.max_nonfinite, spike_factor=config.spike_factor, saved=saved
    )


def data_checksums(run: Run) -> dict[str, str]:
    """What the data consist of, by split."""
    return {"train": run.train_data.checksum, "val": run.val_data.checksum}


def data_path(config: RunConfig, *, prepared: bool = True) -> Path:
    """The folder of the configuration's data set.

    With prepared, an embedded source is prepared first, if need be, and the main rank warns if the source's files have
    changed since.
    """
    source, tokenizer = plug_in(config.data.source), plug_in(config.data.tokenizer)
    settings = config.data.split
    root = Path(config.data.root)
    path = dataset_dir(root, source, tokenizer, **settings)
    if not prepared:
        return path
    if source.embedded and not is_prepared(path):
        return prepare(source, tokenizer, root, workers=config.data.workers, **settings)
    if os.environ.get("RANK", "0") == "0":
        warn_if_changed(source, path)
    return path


def model_config(config: RunConfig, vocab_size: int) -> GPTConfig:
    """The model's configuration for data with vocab_size token ids.

    Raises: DataError: if model.vocab_size is set and too small.
    """
    settings = dict(config.model)
    wanted = settings.pop("vocab_size")
    if wanted is not None and wanted < vocab_size:
        raise DataError(
            f"model.vocab_size={wanted} is smaller than the data's vocabulary of {vocab_size}; "
            "leave it out (null), or prepare the data with another tokenizer"
        )
    return GPTConfig(vocab_size=wanted or vocab_size, **settings)


def open_data(config: RunConfig, strategy: Strategy) -> tuple[TokenDataset, TokenDataset, GPTConfig, TokenLoader]:
    """The splits, verified, the model's configuration for them, and this rank's loader."""
    with strategy.watch.busy("preparing or checking the data"):
        path = data_path(config)
        train_data, val_data = TokenDataset.open(path, "train"), TokenDataset.open(path, "val")
    gpt_config = model_config(config, train_data.vocab_size)
    return train_data, val_data, gpt_config, open_loader(config, train_data, gpt_config.block_size, strategy)


def open_loader(config: RunConfig, train_data: TokenDataset, seq_len: int, strategy: Strategy) -> TokenLoader:
    """This rank's loader of the training data."""
    return TokenLoader(
        train_data,
        seq_len=seq_len,
        global_batch=config.global_batch,
        micro_batch=config.micro_batch,
        seed=config.seed,
        order=config.data.order,
        device=strategy.device,
        rank=strategy.rank,
        world_size=strategy.world_size,
    )


def open_strategy(config: RunConfig) -> Strategy:
    """The strategy, which meets the other ranks; what can be checked without them is checked before.

    Raises: ValueError: if the configuration does not allow the run.
    """
    optimizers.check(config.optim)
    plug_in(config.schedule, max_steps=config.max_steps)
    device = environment.pick_device(config.device)
    strategy: Strategy = plug_in(
        config.parallel,
        device=device,
        precision=environment.pick_precision(config.precision, device),
        compiled=device.type == "cuda" if config.compile == "auto" else config.compile == "true",
        timeout_seconds=config.timeout_seconds,
    )
    return strategy


def set_up(config: RunConfig, strategy: Strategy, directory: RunDirectory, stack: ExitStack) -> Run:
    """Builds the parts of the run and continues from its last checkpoint; cheap checks come first.

    Raises: ValueError: if the configuration, the data or the checkpoints do not allow the run.
    """
    train_data, val_data, gpt_config, loader = strategy.ranks.main_first(lambda: open_data(config, strategy))
    stack.callback(loader.close)
    torch.manual_seed(config.seed)
    model = GPT(gpt_config)
    roles = model.roles()
    strategy.prepare(model, list(model.h), config.activation_checkpointing)
    sizes = {"seed": config.seed, "global_batch": config.global_batch}
    run = Run(
        config=config,
        directory=directory,
        train_data=train_data,
        val_data=val_data,
        strategy=strategy,
        loader=loader,
        model=model,
        optimizer=optimizers.build(config.optim, dict(model.named_parameters()), roles, group=strategy.group, **sizes),
        schedule=plug_in(config.schedule, max_steps=config.max_steps),
        store=CheckpointStore(
            directory.checkpoints,
            keep=config.keep_checkpoints,
            permanent_every=config.permanent_every,
            ranks=strategy.ranks,
            watch=strategy.watch,
        ),
        divergence=watch(config, strategy),
        clock=Clock(0.0, strategy.synchronize),
    )
    stack.callback(run.store.wait)
    next(eval_slice(run))  # a slice longer than the data fails here
    restore(run)
    strategy.ranks.from_main(lambda: begin(run, stack))
    return run


def begin(run: Run, stack: ExitStack) -> None:
    """Opens the sinks, records what the run is and says what will happen.

    Raises: ValueError: if the run directory cannot be written, or a sink does not take its settings.
    """
    config, strategy, path = run.config, run.strategy, run.directory.path
    plugged = [plug_in(node, run_dir=path, settings=flat(config)) for node in config.logging.values()]
    facts = {"precision": strategy.precision, "compiled": strategy.compiled, "data": data_checksums(run)}
    facts |= {"strategy": type(strategy).__name__, "world_size": strategy.world_size}
    tokenizer_json = json.dumps(load_tokenizer(run.train_data.path).to_json())
    described = environment.describe(strategy.device, **facts)
    run.directory.begin(as_yaml(config), described, tokenizer_json)
    n_parameters, where = parameter_count(run.model.config), environment.device_name(strategy.device)
    ranks = f"{strategy.world_size} ranks, {type(strategy).__name__}, " if strategy.world_size > 1 else ""
    print(f"{n_parameters:,} parameters on {where}, {ranks}{strategy.precision}; run directory {path}")
    if run.step:
        print(f"continuing at step {run.step} of {config.max_steps}")
    console = Console(max_steps=config.max_steps, first_step=run.step)
    try:
        record_of_all = JsonLines(path / "metrics.jsonl", run.step)
    except OSError as error:
        raise RunDirectoryError(f"{path / 'metrics.jsonl'} cannot be written: {error.strerror}") from error
    run.sinks = [record_of_all, console, *plugged]
    for sink in run.sinks:
        stack.callback(attempt, f"closing the sink {type(sink).__name__}", sink.close)


def finish(run: Run, status: str) -> None:
    """Writes result.json, on which all depends that comes after the run; nobody goes on before it is there."""
    run.store.wait()
    stands = counters(run)
    result = {
        "status": status,
        **stands,
        "tokens_per_second": stands["tokens"] / stands["seconds"],
        "train/loss": run.losses.get("train/loss"),
        "val/loss": run.losses.get("val/loss"),
        "skipped_steps": run.divergence.skipped_steps,
        "params_sha256": parameters_sha256(full_parameters(run)),
    }
    if status == "diverged":
        result["step"] = run.divergence.step

    def written() -> None:
        with run.strategy.watch.busy(f"writing to {run.directory.path}"):
            run.directory.finish(result)

    run.strategy.ranks.from_main(written)


def full_parameters(run: Run) -> Iterator[tuple[str, Tensor]]:
    """The model's parameters in the order of their names, gathered where they are sharded."""
    for name, parameter in sorted(run.model.named_parameters()):
        yield name, run.strategy.whole(parameter)
        run.strategy.watch.beat()


def show(run: Run, status: str) -> None:
    """Shows a run that has ended. What fails here costs the run nothing.

    The ranks leave together: a launcher ends the others as soon as one has ended.
    """
    continuation = attempt("the sample", lambda: sample(run)) if status == "finished" else None
    if run.strategy.is_main:
        with run.strategy.watch.busy("drawing the loss curve"):
            attempt("the loss curve", lambda: draw(run))
        attempt("the last words", lambda: tell(run, status, continuation or ""))
    run.strategy.ranks.barrier()


def attempt(what: str, function: Callable[[], T]) -> T | None:
    """What the function returns; None, with a warning, if it fails."""
    try:
        return function()
    except Exception as error:
        log.warning("warning: %s failed (%s: %s); the run itself is unharmed", what, type(error).__name__, error)
        return None


def draw(run: Run) -> None:
    """Draws the loss curve."""
    path = run.directory.path
    plot_loss(read_rows(path / "metrics.jsonl"), path / "loss.png", path.name)


def tell(run: Run, status: str, continuation: str) -> None:
    """The last words to the user."""
    path = run.directory.path
    if status == "finished":
        print(f"\nval/loss {run.losses['val/loss']:.4f}", continuation, sep="\n\n", end="\n\n")
    elif status == "stopped":
        print(f"stopped after {run.step} steps; the same command continues")
    else:
        print(diverged(run), file=sys.stderr)
    for hint in run.hints:
        print(f"hint: {hint}")
    print(f"run directory  {path}\nloss curve     {path / 'loss.png'}", flush=True)


def diverged(run: Run) -> str:
    """The line for a run that diverged."""
    checkpoints = run.store.paths()
    return (
        f"error: at step {run.divergence.step} {run.divergence.diagnosis}; last good checkpoint: "
        f"{checkpoints[-1] if checkpoints else 'none'}; try a lower optim.lr, more schedule.warmup_steps, a smaller "
        "grad_clip, or precision=fp32"
    )


def sample(run: Run) -> str:
    """A continuation of data.prompt by the trained model; of an empty one, a text from its beginning."""
    strategy, config = run.strategy, run.config
    if not config.sample_tokens:
        return ""
    found = strategy.ranks.from_main(lambda: attempt("the sample", lambda: encoded_prompt(run)))
    if found is None:
        return ""
    tokenizer, prompt = found
    tokens = torch.tensor([prompt], device=strategy.device)
    generator = torch.Generator(strategy.device).manual_seed(config.seed)
    for _ in range(config.sample_tokens):
        with strategy.autocast():
            tokens = run.model.generate(tokens, 1, temperature=0.8, top_k=50, generator=generator)
        strategy.watch.beat()
    return tokenizer.decode(tokens[0].tolist())


def encoded_prompt(run: Run) -> tuple[Tokenizer, list[int]]:
    """The run's tokenizer and the ids of its prompt."""
    tokenizer = read_tokenizer(run.directory.path / TOKENIZER)
    return tokenizer, tokenizer.encode(run.config.data.prompt) or [tokenizer.eot]


def ended_before(directory: RunDirectory) -> int | None:
    """The exit status if there is nothing left to run."""
    result = directory.result
    if result is None or result["status"] == "stopped":
        return None
    print(
        f"run directory {directory.path}: this run has {result['status']} at step {result.get('step')}, "
        f"val/loss {result.get('val/loss')}; to run it again choose another run_dir or delete this one",
        flush=True,
    )
    return STATUS[result["status"]]


def main(config: RunConfig) -> int:
    """Trains; the exit status."""
    logging.basicConfig(format="%(message)s")
    tune_allocator()
    try:
        strategy = open_strategy(config)
    except ValueError as error:
        return bad_input(error)
    with closing(strategy):
        try:
            return train(config, strategy)
        except ValueError as error:
            return bad_input(error)


def train(config: RunConfig, strategy: Strategy) -> int:
    """Trains with these ranks; the exit status.

    Raises: ValueError: if the configuration, the data or the run directory do not allow the run.
    """
    ranks = strategy.ranks
    open_directory = partial(
        RunDirectory, Path(config.run_dir), resume=config.resume, differences=partial(differences, config)
    )
    with closing(ranks.main_first(lambda: open_directory(is_main=ranks.is_main))) as directory:
        status = ranks.from_main(lambda: ended_before(directory))
        if status is not None:
            return status
        with ExitStack() as parts:
            run = set_up(config, strategy, directory, parts)
            with StopRequest() as stop:
                outcome = loop(run, stop)
                finish(run, outcome)
                parts.close()  # sinks say their last words before the run does
                with suppress(KeyboardInterrupt):
                    show(run, outcome)
    return STATUS[outcome]


def bad_input(error: ValueError) -> int:
    """Tells the user, once, whatever the number of ranks; the exit status."""
    wait_for_the_cause(int(os.environ.get("RANK", "0")))
    if not isinstance(error, MainRankError):
        print(f"error: {error}", file=sys.stderr)
    return STATUS["bad input"]


def run_and_leave(config: RunConfig) -> None:
    """main(), as one of several processes if a launcher started them; ends this one."""
    try:
        status = main(config)
    except KeyboardInterrupt:
        status = STATUS["stopped"]
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        wait_for_the_cause(1)
        print(f"error: rank {os.environ.get('RANK')} {LOST}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if started_processes() > 1:
        os._exit(status)  # threads of gloo may abort a normal exit (github.com/pytorch/pytorch/issues/190489)
    sys.exit(status)


if __name__ == "__main__":
    record(run_and_leave)(CONFIG)

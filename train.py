"""One training run: python train.py [group=option] [key=value ...], which also continues one that was interrupted.

Several ranks: torchrun --standalone --nproc_per_node=N train.py parallel=ddp (or fsdp2).
A sweep (-m) skips runs that have finished and continues broken ones; a summary, best first, is printed, and written as
CSV. Exit status: 0 finished, 2 bad input, 3 diverged, 75 stopped by a signal (the same command continues); of a sweep 0
if all finished, 75, or that of the first that failed. torchrun itself exits with 1 unless all is well: see result.json.
"""

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

from functools import partial

from configs import RunConfig, from_command_line

if __name__ == "__main__":
    import os

    from launch.stopping import exit_at_once
    from launch.sweep import sweep

    exit_at_once()

    def provide(config: RunConfig) -> None:
        """Prepares a run's data set, or raises ValueError if that is for the user to do."""
        from assembly.data import provide_data

        provide_data(config)

    # A misspelt key ends here, before the heavy imports.
    CONFIG = from_command_line(__file__, __doc__, partial(sweep, provide=provide))
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # torch reads it now: what MPS lacks runs on the CPU

import logging
import math
import os
import sys
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record

from assembly.branch import check_data, differences, is_own, optimizer_state, trunk_checkpoint
from assembly.ending import ended_before, finish, show
from assembly.run import READING, Run, counters, data_checksums, divergence_of, origin_facts, validation_batches
from assembly.setting_up import begin, open_strategy, set_up
from assembly.sinks import diagnostics, write
from configs.start import origin_from
from data import Batch
from launch.statuses import EXIT_STATUS
from launch.stopping import StopRequest, interruptible, leave
from model import GPT  # noqa: F401  # a name of this module that others patch, from before models were plug-ins
from optim.sampling import hashed
from trainer.allocator import tune_allocator
from trainer.checkpoint import Checkpoint, CheckpointError
from trainer.clock import Clock
from trainer.metrics import bits_per_byte
from trainer.parallel import Strategy
from trainer.ranks import MainRankError, is_lost_rank, wait_for_the_cause
from trainer.run_directory import RunDirectory

LOST = "lost another rank, which was killed or says why; the same command continues from the last checkpoint"


def main(config: RunConfig) -> int:
    """Trains the run that the configuration describes; returns the exit status."""
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
    """Trains with an open strategy; returns the exit status.

    Raises: ValueError: if the configuration, the data or the run directory do not allow the run.
    """
    ranks, opening = strategy.ranks, f"opening {config.run_dir}"
    is_other = partial(differences, config, strategy.precision)
    open_directory = partial(RunDirectory, Path(config.run_dir), resume=config.resume, differences=is_other)
    with (
        interruptible(),
        closing(ranks.main_first(lambda: open_directory(is_main=ranks.is_main), opening)) as directory,
    ):
        status = ranks.from_main(lambda: ended_before(directory, config.max_steps), opening)
        if status is not None:
            return status
        with ExitStack() as parts:
            run = set_up(config, strategy, directory, parts)
            restore(run)
            ranks.from_main(lambda: begin(run, parts), f"writing to {directory.path}")
            with StopRequest() as stop:
                outcome = loop(run, stop)
                finish(run, outcome)
                parts.close()  # closes the sinks, so that they write before the summary below
                with suppress(KeyboardInterrupt):
                    show(run, outcome)
    return EXIT_STATUS[outcome]


def loop(run: Run, stop: StopRequest) -> str:
    """Trains from step run.step to the last one; returns "finished", "stopped" or "diverged"."""
    config, strategy, optimizer = run.config, run.strategy, run.optimizer
    for step in range(run.step, config.max_steps):
        strategy.phases.begin_step()
        row = evaluate(run) if step % config.eval_every == 0 else {}
        row_start = counters(run)
        torch.manual_seed(hashed(config.seed, step, strategy.data_rank))  # dropout; so checkpoints need no RNG state
        with strategy.watch.busy(READING), strategy.phases.named("loader"):
            batches = run.loader.batches(step)
        for estimator in optimizer.estimators:  # curvature at the parameters that the step below updates
            with strategy.phases.named("curvature"):
                estimator.update(step, batches, strategy.extra_backward)
        loss = strategy.forward_backward(batches, next_token_loss, config.global_batch)
        grad_norm = strategy.clip_grad_norm_(config.grad_clip)
        run.clipped_steps += grad_norm > (config.grad_clip or math.inf)
        lr = run.schedule.apply(optimizer, step)
        is_last = step + 1 == config.max_steps
        log_due = step % config.log_every == 0 or is_last
        is_finite = run.divergence.observe(step, loss, grad_norm)
        strategy.keep_finite(is_finite)
        with strategy.phases.named("optimizer"):
            optimizer.step(measured=log_due, is_finite=is_finite)
            optimizer.zero_grad()
        run.step = step + 1
        is_asked_to_stop = strategy.ranks.any_so_far(stop.asked)
        save_due = (saves_at(config, run.step) or is_asked_to_stop) and not is_last  # end() saves the last
        if (log_due or save_due) and run.divergence.step is not None:
            return "diverged"
        if log_due:
            row |= {"train/loss": float(loss), "lr": lr, "grad_norm": float(grad_norm)} | diagnostics(run)
            row |= {"clipped_steps": int(run.clipped_steps), "skipped_steps": run.divergence.skipped_steps}
        if row:
            write(run, row_start | row)
        if log_due or save_due:
            run.losses["train/loss"] = float(loss)
        if save_due:
            save(run)
        if is_asked_to_stop and not is_last:
            return "stopped"
    strategy.phases.close()  # the end of the run is no part of its last step
    row = evaluate(run)
    write(run, counters(run) | row)
    return end(run)


def saves_at(config: RunConfig, step: int) -> bool:
    """Whether the configuration asks for a checkpoint after so many steps."""
    return step % config.save_every == 0 or step in (config.save_at or ())


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the mean cross entropy over the micro-batch, in nats per token."""
    loss: Tensor = model(batch.inputs, batch.targets)
    return loss


def evaluate(run: Run) -> dict[str, float]:
    """Returns the loss on the fixed part of the validation set, per token and per byte."""
    with run.clock.paused(), run.strategy.phases.named("evaluation"):
        found = {"val/loss": run.strategy.evaluate(validation_batches(run), next_token_loss)}
    if (bits := bits_per_byte(found["val/loss"], run.bytes_per_token)) is not None:
        found["val/bits_per_byte"] = bits
    run.losses |= found
    return found


def end(run: Run) -> str:
    """Returns how a run that has done all its steps ended; writes its last checkpoint unless it has diverged."""
    if math.isfinite(run.losses["val/loss"]) and run.strategy.has_finite_parameters():
        save(run)
        return "finished"
    run.divergence.declare(run.step - 1, "parameters or val/loss were not finite after the last step")
    return "diverged"


def save(run: Run) -> None:
    """Writes a checkpoint: everything that the steps from run.step on depend on."""
    with run.clock.paused():
        optim_tensors, optim_state = run.optimizer.save_state()
        tensors = {f"model.{name}": p for name, p in run.model.named_parameters()}
        state = counters(run) | {
            "losses": run.losses,
            "optim": optim_state,
            "clipped_steps": int(run.clipped_steps),
            "divergence": run.divergence.state(),
            "data": data_checksums(run),
            "start_from": origin_facts(run),
        }
        run.store.save(Checkpoint(tensors | {f"optim.{name}": t for name, t in optim_tensors.items()}, state))


def restore(run: Run) -> None:
    """Continues from the newest checkpoint, whichever ranks and strategy wrote it, or else from that of start_from."""
    run.store.remove_temporaries()
    saved = run.store.newest(set_aside=True) or trunk_checkpoint(run)
    if saved is None:
        return
    check_data(run, saved)
    model = {f"model.{name}": p.detach() for name, p in run.model.named_parameters()}
    state = run.optimizer.empty_state(saved.group("optim"))
    saved.read_into(model | {f"optim.{name}": tensor for name, tensor in state.items()})
    run.optimizer.load_state(state, optimizer_state(run, saved))
    if not run.strategy.has_finite_parameters():
        remedy = "delete it to go on from one before it" if is_own(run, saved) else "choose another start_from"
        raise CheckpointError(f"{saved.path} has parameters that are not finite; {remedy}")
    if run.origin is None and (began := saved.state.get("start_from")):
        run.origin = origin_from(began)
    run.step = saved.state["step"]
    run.losses = {name: math.nan if loss is None else loss for name, loss in saved.state["losses"].items()}
    run.clipped_steps = saved.state["clipped_steps"]
    run.divergence = divergence_of(run.config, run.strategy, saved.state["divergence"])
    run.clock = Clock(saved.state["seconds"], run.strategy.synchronize)


def bad_input(error: ValueError) -> int:
    """Prints the error, once for all ranks; returns the exit status."""
    wait_for_the_cause(int(os.environ.get("RANK", "0")))
    if not isinstance(error, MainRankError):
        print(f"error: {error}", file=sys.stderr)
    return EXIT_STATUS["bad input"]


def run_and_exit(config: RunConfig) -> None:
    """Runs main() as one rank, and ends the process."""
    leave(as_rank(config))


def as_rank(config: RunConfig) -> int:
    """Runs main() as one rank; returns the exit status, also where a signal or the loss of another rank ends it."""
    try:
        return main(config)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("stopped; the same command continues", flush=True)
        return EXIT_STATUS["stopped"]
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        wait_for_the_cause(1)
        print(f"error: rank {os.environ.get('RANK')} {LOST}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    record(run_and_exit)(CONFIG)

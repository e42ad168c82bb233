"""Ends a run: writes its result first, then shows it."""

import sys

import torch

from assembly.run import Run, counters, full_parameters
from assembly.sinks import attempt
from data import read_tokenizer
from launch.statuses import EXIT_STATUS
from model.generation import Sampling, stream
from trainer.checkpoint import parameters_sha256
from trainer.manifest import step_of
from trainer.metrics import read_rows
from trainer.plot import plot_loss
from trainer.run_directory import TOKENIZER, RunDirectory

SAMPLING = Sampling(temperature=0.8, top_k=50)


def finish(run: Run, status: str) -> None:
    """Writes result.json, from which other programs see that the run has ended; all ranks wait until it is there."""
    run.store.wait()
    counted = counters(run)
    result = {
        "status": status,
        **counted,
        "tokens_per_second": counted["tokens"] / counted["seconds"],
        "train/loss": run.losses.get("train/loss"),
        "val/loss": run.losses.get("val/loss"),
        "val/bits_per_byte": run.losses.get("val/bits_per_byte"),
        "skipped_steps": run.divergence.skipped_steps,
        "params_sha256": parameters_sha256(full_parameters(run)),
    }
    if status == "diverged":
        result["step"] = run.divergence.step

    run.strategy.ranks.from_main(lambda: run.directory.finish(result), f"writing to {run.directory.path}")


def show(run: Run, status: str) -> None:
    """Draws the loss curve and prints a sample and a summary; what fails here is only warned of.

    The ranks wait for each other at the end: a launcher ends all of them as soon as one has ended.
    """
    continuation = attempt("the sample", lambda: sample(run)) if status == "finished" else None
    if run.strategy.is_main:
        with run.strategy.watch.busy("drawing the loss curve"):
            attempt("the loss curve", lambda: draw(run))
        attempt("the summary", lambda: print_summary(run, status, continuation or ""))
    run.strategy.ranks.barrier()


def draw(run: Run) -> None:
    """Draws the loss curve to loss.png."""
    path = run.directory.path
    plot_loss(read_rows(path / "metrics.jsonl"), path / "loss.png", path.name)


def print_summary(run: Run, status: str, continuation: str) -> None:
    """Prints how the run ended, the sample, hints, and where its files are."""
    path = run.directory.path
    if status == "finished":
        print(f"\nval/loss {run.losses['val/loss']:.4f}", continuation, sep="\n\n", end="\n\n")
    elif status == "stopped":
        print(f"stopped after {run.step} steps; the same command continues")
    else:
        print(diverged(run), file=sys.stderr)
    if status == "finished" and (newest := newest_step(run)) != run.step:
        there = "there is none" if newest is None else f"the newest is of step {newest}"
        print(
            f"hint: the checkpoint of the last step could not be written, {there}; to have it, free disk space, delete "
            f"{path / 'result.json'} and give the same command"
        )
    for hint in run.hints:
        print(f"hint: {hint}")
    print(f"run directory  {path}\nloss curve     {path / 'loss.png'}", flush=True)


def newest_step(run: Run) -> int | None:
    """Returns the step of the newest checkpoint, None if there is none."""
    return step_of(paths[-1]) if (paths := run.store.paths()) else None


def diverged(run: Run) -> str:
    """Returns the error line of a run that diverged."""
    last_good = ["none", *run.store.paths()][-1]
    return (
        f"error: at step {run.divergence.step} {run.divergence.diagnosis}; last good checkpoint: {last_good}; try a "
        "lower optim.lr, more schedule.warmup_steps, a smaller grad_clip, or precision=fp32"
    )


def sample(run: Run) -> str:
    """Returns a continuation of data.prompt by the model, on the main rank; every rank must call this.

    An empty prompt begins a text.
    """
    strategy, config = run.strategy, run.config
    if not config.sample_tokens:
        return ""
    prompt = strategy.ranks.from_main(lambda: attempt("the sample", lambda: encoded_prompt(run)))
    if prompt is None:
        return ""
    tokens = torch.tensor([prompt], device=strategy.device)
    generator, use_cache = torch.Generator(strategy.device).manual_seed(config.seed), not strategy.is_sharded
    with strategy.autocast():
        drawn = stream(run.model, tokens, config.sample_tokens, SAMPLING, generator=generator, use_cache=use_cache)
        for new in drawn:
            prompt.append(int(new))
            strategy.watch.progress()
    return read_tokenizer(run.directory.path / TOKENIZER).decode(prompt) if strategy.is_main else ""


def encoded_prompt(run: Run) -> list[int]:
    """Returns the ids of the run's prompt."""
    tokenizer = read_tokenizer(run.directory.path / TOKENIZER)
    return tokenizer.encode(run.config.data.prompt) or [tokenizer.eot]


def ended_before(directory: RunDirectory, max_steps: int) -> int | None:
    """Returns the exit status if the run has finished its max_steps or diverged before, else None."""
    result = directory.result
    if result is None or result["status"] == "stopped":
        return None
    if result["status"] == "finished" and isinstance(step := result.get("step"), int) and step < max_steps:
        return None
    print(
        f"run directory {directory.path}: this run has {result['status']} at step {result.get('step')}, "
        f"val/loss {result.get('val/loss')}; to run it again choose another run_dir or delete this one",
        flush=True,
    )
    return EXIT_STATUS[result["status"]]

"""Begins a run with what start_from names, and lengthens one.

RUN@STEP, RUN    a checkpoint of another run, the trunk; the new run is its branch. The trunk is only read, and nothing
                 that it names is imported or executed; it may have finished or still be running.
LAYOUT:PATH      weights that another program trained, see interchange/

Of a trunk, start=everything takes over weights, optimizer state and counters bit for bit, and the run goes on at STEP.
Such a branch is exact if nothing that the result depends on changes there, and its learning rate until STEP would have
been the trunk's: then it ends bit for bit as the run without start_from, which it replaces. Either may continue the
other in one run directory. Any other branch is a run of its own. start=weights takes over the weights alone, and the
run begins at step 0 (weights.py).

A run whose max_steps has grown goes on from its own newest checkpoint. Where its learning rates so far would have been
others, it is not the run that it would be from step 0, and its origin says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import configs
from assembly.run import Run, data_checksums
from assembly.weights import check_tokenizer, checkpoint_of
from configs import RunConfig, differing, flat, plug_in, read_config
from configs.runs import ABSENT, Difference, belongs
from configs.schema import keys_that
from configs.start import (
    EVERYTHING,
    ITSELF,
    WEIGHTS,
    Origin,
    kind_of,
    layout_of,
    recorded,
    start_differences,
    start_of,
)
from files.errors import ReadingError, shown
from files.paths import expanded
from files.reading import MIB, read_json
from interchange import layout_named
from trainer import schedule
from trainer.checkpoint import CheckpointError, Saved
from trainer.manifest import checkpoints_in, step_of
from trainer.run_directory import CHECKPOINTS, CONFIG, ENVIRONMENT, RunDirectory

MOST_LISTED = 20  # steps, in a message
PEAK = "initial_lr"  # in a group: the schedule's, which it makes of lr where there is none
DROPOUT = "model.dropout"  # of the model's settings the one on which no weight depends
SCHEDULES = {
    f"trainer.{name}"
    for name, each in vars(schedule).items()
    if isinstance(each, type) and issubclass(each, schedule.Schedule)
}


class BranchError(ValueError):
    """Raised if a run cannot begin where start_from says; one clear line."""


def differences(config: RunConfig, precision: str, path: Path) -> list[str]:
    """As configs.differences, but neither more steps nor a start_from that changes nothing of the result count.

    precision: what the configuration's stands for on this device.

    Raises: ValueError: if a file of the run cannot be read, or start_from is another than there and leads nowhere.
    """
    found, theirs = configs.differences(config, path), recorded(path.parent)
    if _is_longer(config, path) and checkpoints_in(path.parent / CHECKPOINTS):
        found = [each for each in found if not each.startswith("max_steps=")]
    is_open = theirs is None or theirs.exact  # else only the same start_from would do
    if not is_open or not found or found != start_differences(config.start_from, config.start, theirs):
        return found
    ours = origin_of(config, precision)
    return [] if ours is None or ours.exact else found


def origin_in(config: RunConfig, precision: str, directory: RunDirectory) -> Origin | None:
    """Where the run in a directory begins, or began if it has a checkpoint of its own; None: at step 0.

    Raises: as origin_of.
    """
    own = checkpoints_in(directory.checkpoints)
    before, path = recorded(directory.path), directory.path / CONFIG
    if not own:
        return origin_of(config, precision, before)
    if not _is_longer(config, path) or _has_learning_rates_of(path, config, step_of(own[-1])):
        return before
    before = before or Origin(ITSELF, step_of(own[-1]), exact=False)
    longer = str(Difference("max_steps", config.max_steps, read_config(path)["max_steps"]))
    return replace(before, exact=False, changed=(*before.changed, longer))


def origin_of(config: RunConfig, precision: str, before: Origin | None = None) -> Origin | None:
    """What start_from says, checked as far as the trunk's configuration and the names of its checkpoints allow.

    before: where the run began when it was started the first time; without a step, start_from means that one's again.

    Raises: ValueError: if there is no such run or checkpoint, or it is of a run that cannot be continued as this one.
    """
    if config.start_from is None:
        return None
    (run, step), kind = start_of(config.start_from), kind_of(config.start_from, config.start)
    if step is None and before is not None and before.run == run:
        step = before.step
    if (layout := layout_of(run)) is not None:
        layout_named(layout[0], "start_from").check(expanded(layout[1], "start_from"))
        return Origin(run, 0, exact=False, start=WEIGHTS)
    folder, what = Path(run), f"start_from={shown(config.start_from)}"
    if not (folder / CONFIG).is_file():
        raise BranchError(f"{what}: {shown(run)} is no run directory: it has no {CONFIG}")
    found = differing(config, folder / CONFIG)
    if kind == WEIGHTS:
        _check_agree([each for each in found if belongs(each.key, "model") and each.key != DROPOUT], what, kind)
        return Origin(run, _chosen_step(config, folder, step), exact=False, start=kind)
    changed = [each for each in found if _may_change(each.key)]
    named = [each for each in found if belongs(each.key, "data") and _may_differ(each.key)]
    others = [each for each in found if each not in changed and not _may_differ(each.key)]
    environment = read_json(folder / ENVIRONMENT, most_bytes=MIB) or {}
    if (theirs := environment.get("precision", precision)) != precision:
        others.append(Difference("precision", precision, theirs))
    _check_agree(others, what, kind)
    step, before = _chosen_step(config, folder, step), recorded(folder)
    is_exact = not changed and (before is None or before.exact)
    is_exact = is_exact and _has_learning_rates_of(folder / CONFIG, config, step)
    return Origin(run, step, is_exact, changed=tuple(map(str, (*changed, *named))))


def trunk_checkpoint(run: Run) -> Saved | None:
    """Returns the checkpoint that the run goes on from, verified; None if it begins at step 0.

    Raises: CheckpointError: if it is damaged, or the trunk has deleted it meanwhile.
    """
    if run.origin is None or run.origin.start != EVERYTHING:
        return None
    return checkpoint_of(run.store, run.origin, f"start_from={shown(run.config.start_from)}")


def check_data(run: Run, saved: Saved) -> None:
    """Checks that the run may go on from the checkpoint with its data; notes in run.origin if these are others now.

    Raises: CheckpointError: if the run was trained on other data, and the configuration does not say so.
    """
    is_same, origin = saved.state["data"] == data_checksums(run), run.origin
    if is_own(run, saved) or origin is None:
        origin, is_stated = None, False
    else:
        is_stated = any(each.startswith("data.") for each in origin.changed)
    if not is_same and not is_stated:
        raise CheckpointError(
            f"the run in {saved.path.parents[1]} was trained on other data (checksum {saved.state['data']['train']}, "
            f"now {run.train_data.checksum}): bring that data set back, or choose another "
            f"{'run_dir' if origin is None else 'start_from'}"
        )
    if origin is None:
        return
    if is_same:  # named otherwise
        kept = tuple(each for each in origin.changed if not each.startswith("data.") or each.startswith("data.order="))
        run.origin = replace(origin, changed=kept)
    else:
        check_tokenizer(saved.path.parents[1], run.train_data, f"start_from={shown(run.config.start_from)}")
        run.origin = replace(origin, exact=False)


def optimizer_state(run: Run, saved: Saved) -> Mapping[str, Any]:
    """Returns what of the optimizer's state is no tensor: the trunk's, with our settings where they have changed."""
    found: Mapping[str, Any] = saved.state["optim"]
    origin = None if is_own(run, saved) else run.origin
    if origin is None or not any(each.startswith("optim.") for each in origin.changed):
        return found
    settings = {key.rpartition(".")[2] for key in flat({"optim": run.config.optim})}
    ours = [
        {key: value for key, value in group.items() if key in settings}
        for group in run.optimizer.save_state()[1]["groups"]
    ]
    if len(ours) != len(found["groups"]):
        return found  # load_state() says so
    theirs = [{key: value for key, value in group.items() if key != PEAK} for group in found["groups"]]
    return {**found, "groups": [their | our for their, our in zip(theirs, ours, strict=True)]}


def is_own(run: Run, saved: Saved) -> bool:
    """Whether the checkpoint is one of the run itself."""
    return saved.path.parent == run.store.folder


def remarks(run: Run) -> Iterator[str]:
    """Yields what there is to say about where the run begins."""
    origin = run.origin
    if run.step:
        is_first = origin is not None and (origin.start, origin.step) == (EVERYTHING, run.step) and origin.run != ITSELF
        of = f"{origin.run}, " if origin is not None and is_first else ""
        yield f"continuing {of}at step {run.step} of {run.config.max_steps}"
    elif origin is not None:
        yield f"beginning at step 0 with the weights of {origin.run}" + f", step {origin.step}" * bool(origin.step)
    if origin is not None and origin.run == ITSELF:
        yield (
            f"from step {origin.step} on with the learning rate of a longer run ({'; '.join(origin.changed)}): the "
            "result is not that of a run with these settings from step 0"
        )
    elif origin is not None and origin.changed:
        yield f"changed since {origin.run}: {'; '.join(origin.changed)}"


def _check_agree(found: Sequence[Difference], what: str, kind: str) -> None:
    """Raises: BranchError: if there are differences, with what makes the start possible."""
    if not found:
        return
    settings = [each for each in found if each.theirs != ABSENT and not each.key.endswith("_target_")]
    there = " ".join(f"{each.key}={shown(each.theirs)}" for each in settings)
    ways = [f"add {there}"] if there else []
    if kind != WEIGHTS and not any(belongs(each.key, "model") for each in found):
        ways.append("start=weights, to begin at step 0 with its weights alone")
    raise BranchError(
        f"{what} is a run of another configuration: {'; '.join(map(str, found))}; "
        f"{', or '.join(ways) or 'choose the same class'}"
    )


def _may_change(key: str) -> bool:
    """Whether a run may go on with another value, as another run."""
    if belongs(key, "optim"):
        return not key.endswith("_target_")  # another class has another state
    allowed = keys_that("may_change_in_branch") | {DROPOUT}
    return not _may_differ(key) and any(belongs(key, each) for each in allowed)


def _may_differ(key: str) -> bool:
    return any(belongs(key, each) for each in keys_that("may_differ_in_branch"))


def _chosen_step(config: RunConfig, folder: Path, step: int | None) -> int:
    """The step of the trunk's checkpoint; None: of the newest. Raises: BranchError: if there is none to go on from."""
    steps, what = list(map(step_of, checkpoints_in(folder / CHECKPOINTS))), f"start_from={shown(config.start_from)}"
    if not steps or step not in (None, *steps):
        listed = ", ".join(map(str, steps[-MOST_LISTED:])) or "none yet"
        wanted = "" if step is None else f" of step {step}"
        raise BranchError(f"{what}: that run has no checkpoint{wanted}; the newest are of steps {listed}")
    if step is not None:
        return step
    if kind_of(str(config.start_from), config.start) == EVERYTHING and steps[-1] >= config.max_steps:
        raise BranchError(
            f"{what} is at step {steps[-1]}, and max_steps={config.max_steps} leaves nothing to do; raise max_steps, "
            "or begin at step 0 with its weights alone: start=weights"
        )
    return steps[-1]


def _is_longer(config: RunConfig, path: Path) -> bool:
    """Whether the run has more steps than the one in the config.yaml at path."""
    theirs = read_config(path).get("max_steps")
    return type(theirs) is int and config.max_steps > theirs


def _has_learning_rates_of(path: Path, config: RunConfig, steps: int) -> bool:
    """Whether the first steps have the same learning rates as those of the run in the config.yaml at path.

    False also if that names a class which is neither one of ours nor set up as here: it is not executed.
    """
    trunk = read_config(path, frozenset({str(config.schedule["_target_"])}))
    node = trunk.get("schedule")
    if not isinstance(node, Mapping) or not (node == config.schedule or _is_plain_schedule(node)):
        return False
    try:
        both = plug_in(config.schedule, max_steps=config.max_steps), plug_in(node, max_steps=trunk.get("max_steps"))
        optimizers = [SimpleNamespace(param_groups=[{"params": [], "lr": 1.0}]) for _ in both]
        rates = ([each.apply(o, n) for each, o in zip(both, optimizers, strict=True)] for n in range(steps))
        return all(ours == theirs for ours, theirs in rates)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ReadingError(f"{path}: schedule or max_steps cannot be read: {error}") from None


def _is_plain_schedule(node: Mapping[str, Any]) -> bool:
    """Whether it is a schedule of ours with plain arguments, which may be built though others wrote it down."""
    return str(node.get("_target_")) in SCHEDULES and not any(
        isinstance(each, Mapping | list) for each in node.values()
    )

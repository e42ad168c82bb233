"""Begins a run at a step of another one: start_from=RUN@STEP. RUN is the trunk, the new run its branch.

The trunk is only read, and nothing that it names is imported or executed; it may have finished or still be running. The
branch takes over weights, optimizer state and counters bit for bit. It is exact if its learning rate until STEP would
have been the trunk's: then it ends bit for bit as the run without start_from, which it replaces. Either may continue
the other in one run directory. A branch that is not exact is a run of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import configs
from assembly.run import Run
from configs import RunConfig, differences_from_trunk, plug_in, read_config
from configs.start import Origin, recorded, start_differences, start_of
from files.errors import ReadingError, shown
from files.reading import MIB, read_json
from trainer import schedule
from trainer.checkpoint import CheckpointError, Saved
from trainer.manifest import checkpoints_in
from trainer.run_directory import CHECKPOINTS, CONFIG, ENVIRONMENT, RunDirectory

MOST_LISTED = 20  # steps, in a message
SCHEDULES = {
    f"trainer.{name}"
    for name, each in vars(schedule).items()
    if isinstance(each, type) and issubclass(each, schedule.Schedule)
}


class BranchError(ValueError):
    """Raised if a run cannot begin where start_from says; one clear line."""


def differences(config: RunConfig, precision: str, path: Path) -> list[str]:
    """As configs.differences, but a start_from that changes nothing of the result is no difference.

    precision: what the configuration's stands for on this device.

    Raises: ValueError: if a file of the run cannot be read, or start_from is another than there and leads nowhere.
    """
    found, theirs = configs.differences(config, path), recorded(path.parent)
    is_open = theirs is None or theirs.exact  # else only the same start_from would do
    if not is_open or not found or found != start_differences(config.start_from, theirs):
        return found
    ours = origin_of(config, precision)
    return [] if ours is None or ours.exact else found


def origin_unless_begun(config: RunConfig, precision: str, directory: RunDirectory) -> Origin | None:
    """Where a run begins; None: at step 0, or it has a checkpoint of its own and continues. Raises: as origin_of."""
    return None if checkpoints_in(directory.checkpoints) else origin_of(config, precision)


def origin_of(config: RunConfig, precision: str) -> Origin | None:
    """What start_from says, checked as far as the trunk's configuration and the names of its checkpoints allow.

    Raises: ValueError: if there is no such run or checkpoint, or it is of a run that cannot be continued as this one.
    """
    if config.start_from is None:
        return None
    (run, step), what = start_of(config.start_from), f"start_from={shown(config.start_from)}"
    folder = Path(run)
    if not (folder / CONFIG).is_file():
        raise BranchError(f"{what}: {shown(run)} is no run directory: it has no {CONFIG}")
    found = differences_from_trunk(config, folder / CONFIG)
    environment = read_json(folder / ENVIRONMENT, most_bytes=MIB) or {}
    if (theirs := environment.get("precision", precision)) != precision:
        found.append(f"precision={precision} (there: {shown(theirs)})")
    if found:
        raise BranchError(
            f"{what} is a run of another configuration: {'; '.join(found)}; only the schedule, max_steps and what does "
            "not change the training may differ"
        )
    steps = [int(path.name.removeprefix("step_")) for path in checkpoints_in(folder / CHECKPOINTS)]
    if step not in steps:
        listed = ", ".join(map(str, steps[-MOST_LISTED:])) or "none yet"
        raise BranchError(f"{what}: that run has no checkpoint of step {step}; the newest are of steps {listed}")
    before = recorded(folder)
    is_exact = before is None or before.exact
    return Origin(run, step, is_exact and _has_learning_rates_of(folder / CONFIG, config, step))


def trunk_checkpoint(run: Run) -> Saved | None:
    """Returns the checkpoint that the run begins with, verified; None if it begins at step 0.

    Raises: CheckpointError: if it is damaged, or the trunk has deleted it meanwhile.
    """
    if run.origin is None:
        return None
    path = Path(run.origin.run) / CHECKPOINTS / f"step_{run.origin.step:06d}"
    try:
        return run.store.read(path)
    except CheckpointError as error:
        raise CheckpointError(f"start_from={shown(run.config.start_from)}: {error}; choose another step") from None


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

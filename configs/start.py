"""Where a run begins: at step 0, or with what start_from names; as the configuration says and env.json records."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from files.errors import ReadingError, shown
from files.reading import MIB, read_json

STEP = re.compile(r"(.+)@([0-9]{1,18})", re.DOTALL)
LAYOUT = re.compile(r"([a-z][a-z0-9_]*):(.+)", re.DOTALL)
ENVIRONMENT = "env.json"
EVERYTHING, WEIGHTS = "everything", "weights"
ITSELF = "."  # as the run of an Origin


@dataclass(frozen=True)
class Origin:
    """Where a run began that did not begin with new weights at step 0; see assembly/branch.py."""

    run: str  # the directory of its trunk, or LAYOUT:PATH, as it was given; ITSELF: it was lengthened
    step: int  # of the trunk's checkpoint, or at which it was lengthened
    exact: bool  # whether the run ends bit for bit as it would from step 0
    start: str = EVERYTHING  # what was taken over, or WEIGHTS
    changed: tuple[str, ...] = ()  # settings that were the trunk's until then, as runs.differences() has them

    def __str__(self) -> str:
        place = self.run if layout_of(self.run) else f"{self.run}@{self.step}"
        return place if self.start == EVERYTHING else f"{place} start={self.start}"


def start_of(start_from: str) -> tuple[str, int | None]:
    """The run directory, or LAYOUT:PATH, and the step in start_from; None: the newest.

    Raises: ConfigError: if it is none of RUN, RUN@STEP and LAYOUT:PATH.
    """
    if layout_of(start_from) is not None:
        return start_from, None
    if (found := STEP.fullmatch(start_from)) is not None:
        return found[1], int(found[2])
    if not start_from.strip() or "@" in start_from.rpartition("/")[2]:
        raise ConfigError(
            f"start_from={shown(start_from)} must be RUN@STEP, the directory of a run and a step of which it has a "
            "checkpoint, such as runs/trunk@400; or RUN alone, for the newest; or hf:FOLDER or nanogpt:FILE"
        )
    return start_from, None


def layout_of(run: str) -> tuple[str, str] | None:
    """The name of another program's layout and the path, in LAYOUT:PATH; None for the directory of a run."""
    found = LAYOUT.fullmatch(run)
    return None if found is None else (found[1], found[2])


def kind_of(start_from: str, start: str) -> str:
    """What is taken over, EVERYTHING or WEIGHTS. Raises: ConfigError: if there is not so much to take over."""
    if layout_of(start_from) is None:
        return WEIGHTS if start == WEIGHTS else EVERYTHING
    if start == EVERYTHING:
        raise ConfigError(f"start=everything, but start_from={shown(start_from)} has weights alone; leave start out")
    return WEIGHTS


def check_start(start_from: str | None, start: str, max_steps: int) -> None:
    """Raises: ConfigError: if the keys do not fit together."""
    if start_from is None:
        if start != "auto":
            raise ConfigError(f"start={start} says what is taken over of start_from, which is missing: add start_from=")
        return
    step = start_of(start_from)[1] or 0
    if kind_of(start_from, start) == EVERYTHING and step > max_steps:
        raise ConfigError(
            f"start_from={shown(start_from)} has a step beyond the run's last, max_steps={max_steps}; "
            "start=weights begins at step 0"
        )


def recorded(folder: Path) -> Origin | None:
    """Where the run in a folder began, by its env.json; None: at step 0. Raises: ReadingError."""
    path = folder / ENVIRONMENT
    found = (read_json(path, most_bytes=MIB) or {}).get("start_from")
    if found is None:
        return None
    if not isinstance(found, dict) or not _is_origin(found):
        raise ReadingError(f"{path}: start_from={shown(found)} must be an object with run, step and exact")
    return origin_from(found)


def origin_from(facts: Mapping[str, Any]) -> Origin:
    """The origin of which env.json or a checkpoint has these facts, asdict(origin)."""
    return Origin(**{**facts, "changed": tuple(facts.get("changed", ()))})


def _is_origin(found: Mapping[str, Any]) -> bool:
    """Whether the facts are of the right types; runs of an earlier version lack start and changed."""
    kinds = {"run": str, "step": int, "exact": bool, "start": str, "changed": list}
    is_complete = {"run", "step", "exact"} <= found.keys() <= kinds.keys()
    return is_complete and all(type(each) is kinds[key] for key, each in found.items())


def start_differences(start_from: str | None, start: str, theirs: Origin | None) -> list[str]:
    """How start_from may make the run another one than that which began there, as runs.differences says it.

    One that begins at step 0 is the run that an exact branch ends as, and the one that was lengthened. Of another
    branch only its trunk tells.
    """
    if start_from is None:
        is_same = theirs is None or theirs.exact or theirs.run == ITSELF
        return [] if is_same else [f"start_from=null (there: {shown(theirs)})"]
    run, step = start_of(start_from)
    kind = kind_of(start_from, start)
    is_same = theirs is not None and (run, kind) == (theirs.run, theirs.start) and step in (None, theirs.step)
    ours = start_from if kind == EVERYTHING else f"{start_from} start={kind}"
    return [] if is_same else [f"start_from={shown(ours)} (there: {shown(theirs)})"]

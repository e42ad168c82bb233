"""Where a run begins: at step 0, or at a step of another run, as start_from says and env.json records."""

import re
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError
from files.errors import ReadingError, shown
from files.reading import MIB, read_json

START = re.compile(r"(.+)@([0-9]{1,18})", re.DOTALL)
ENVIRONMENT = "env.json"


@dataclass(frozen=True)
class Origin:
    """Where a run began that is a branch of another one, its trunk; see assembly/branch.py."""

    run: str  # the trunk's directory, as it was given
    step: int
    exact: bool  # whether the branch ends bit for bit as it would from step 0

    def __str__(self) -> str:
        return f"{self.run}@{self.step}"


def start_of(start_from: str) -> tuple[str, int]:
    """The run directory and the step in start_from. Raises: ConfigError: if it is not RUN@STEP."""
    found = START.fullmatch(start_from)
    if found is None:
        raise ConfigError(
            f"start_from={shown(start_from)} must be RUN@STEP: the directory of a run, and a step of which it has a "
            "checkpoint, such as runs/trunk@400"
        )
    return found[1], int(found[2])


def recorded(folder: Path) -> Origin | None:
    """Where the run in a folder began, by its env.json; None: at step 0. Raises: ReadingError."""
    path = folder / ENVIRONMENT
    found = (read_json(path, most_bytes=MIB) or {}).get("start_from")
    if found is None:
        return None
    kinds = {"run": str, "step": int, "exact": bool}
    if not isinstance(found, dict) or {key: type(each) for key, each in found.items()} != kinds:
        raise ReadingError(f"{path}: start_from={shown(found)} must be an object with run, step and exact")
    return Origin(**found)


def start_differences(start_from: str | None, theirs: Origin | None) -> list[str]:
    """How start_from may make the run another one than that which began there, as runs.differences says it.

    One that begins at step 0 is the run that an exact branch ends as. Of another branch only its trunk tells.
    """
    if start_from is None:
        is_same = theirs is None or theirs.exact
    else:
        is_same = theirs is not None and start_of(start_from) == (theirs.run, theirs.step)
    return [] if is_same else [f"start_from={shown(start_from)} (there: {shown(theirs)})"]

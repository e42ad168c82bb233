"""The groups of a run's configuration, and the options of each: the files of its folder."""

from pathlib import Path

FOLDER = Path(__file__).parent
GROUPS = ("model", "data", "data/tokenizer", "optim", "schedule", "parallel", "logging")


def options_of(group: str) -> list[str]:
    """The names of the group's options, sorted."""
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))

"""What the runs of a claim were computed on, where they may come from several machines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from configs.runs import flat, without

DEVICE = "device"
OWN = frozenset({"data", "start_from", "git.commit"})  # of a run: these stand elsewhere in a report


def merged(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every fact of the environments by dotted key; one that differs, as its values and how many runs had each."""
    known = [without(flat(each), OWN) for each in environments]
    return {
        key: _one_or_all([each.get(key) for each in known])
        for key in dict.fromkeys(key for each in known for key in each)
    }


def devices(environments: Sequence[Mapping[str, Any]]) -> list[str]:
    """The devices that runs were computed on, most runs first."""
    return [name for name, _ in Counter(str(each[DEVICE]) for each in environments if each.get(DEVICE)).most_common()]


def note(environments: Sequence[Mapping[str, Any]], timed_on: str | None) -> list[str]:
    """What a reader must know if runs come from several devices, or seconds per step from another than the runs."""
    found = devices(environments)
    lines = []
    if len(found) > 1:
        lines.append(
            f"The runs were computed on {' and '.join(found)}. Runs of one seed have the same initial weights and "
            "batches on both, and differ in rounding."
        )
    if timed_on and found and found != [timed_on]:
        lines.append(f"Seconds per step were measured on {timed_on}.")
    return lines


def _one_or_all(values: Sequence[Any]) -> Any:
    counted: dict[str, list[Any]] = {}
    for value in values:
        counted.setdefault(repr(value), []).append(value)
    if len(counted) == 1:
        return values[0]
    by_count = sorted(counted.values(), key=len, reverse=True)
    return ", ".join(f"{same[0]} ({len(same)} {'run' if len(same) == 1 else 'runs'})" for same in by_count)

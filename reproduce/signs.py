"""Which optimizers are faster than a baseline here, and what others found of them, in one table for the ledger.

Others' numbers are the speed-ups in steps that claim files cite as evidence. Where signs differ, the table gives the
reason that the claim's file states, in a note that begins with WHY.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from inference.verdicts import BAND, OUT_OF_REGIME
from report import numbers
from report.results import Arm, Measure, Published, Results, Table
from reproduce.speed_ups import IN_STEPS

WHY = "Why others may differ: "
SIGNS = ("slower", "no difference", "faster")


def table(results: Sequence[Results]) -> Table:
    """A row for every arm whose speed-up in steps over its claim's baseline was measured, here and by others."""
    found = [(each, arm, row, others) for each in results for arm, row, others in _arms(each)]
    studies = list(dict.fromkeys(study for *_, others in found for study in others))
    columns = ["optimizer", "over", "here", "this part of its claim", *studies, "beside others"]
    rows = [
        [
            arm.label,
            _baseline(each).label,
            _here(row),
            _verdict(each, row),
            *(", ".join(f"{x:.2f}×" for x in _numbers(others.get(study, []))) or numbers.MISSING for study in studies),
            _compared(row, others, each.notes),
        ]
        for each, arm, row, others in found
    ]
    note = (
        f"Speed-ups in steps, those of others from the smallest model to the largest. Within a factor of {1 + BAND:g} "
        "of 1 there is no difference; here every sign is named that the 95 % interval holds. Others give no intervals; "
        "of several numbers of a study the median counts."
    )
    return Table("Signs here and elsewhere", columns, rows, note)


def _arms(results: Results) -> list[tuple[Arm, Measure, dict[str, list[Published]]]]:
    """The arms with a measured speed-up over the baseline and evidence of others, by study."""
    measures = {row.label: row for row in results.protocols[-1].measures}
    found = []
    for arm in results.arms:
        others: dict[str, list[Published]] = {}
        for each in results.published:
            if (each.arm, each.quantity) == (arm.name, IN_STEPS):
                others.setdefault(each.label.partition(",")[0], []).append(each)
        row = measures.get(f"{IN_STEPS}, {arm.label} against {_baseline(results).label}") if others else None
        if row is not None:
            found.append((arm, row, others))
    return found


def _here(row: Measure) -> str:
    interval = numbers.interval(row)
    return numbers.with_unit(numbers.estimate(row), row.unit) + (f" ({interval})" if interval else "")


def _verdict(results: Results, row: Measure) -> str:
    """Of the part that the row is; the whole claim's where that is out of regime, and so is every part."""
    own = OUT_OF_REGIME if results.verdict == OUT_OF_REGIME else row.verdict or "none"
    return f"{own} ({results.scale})"


def _baseline(results: Results) -> Arm:
    return next(arm for arm in results.arms if arm.role == "baseline")


def _compared(row: Measure, others: Mapping[str, Sequence[Published]], notes: Sequence[str]) -> str:
    """Whether the sign of each study's median is possible here; if not, the reason that is stated."""
    ours = _possible(row)
    if len(ours) in (0, len(SIGNS)):
        return "undecided here"
    words = " or ".join(ours)
    signs = {study: _sign(median(_numbers(rows))) for study, rows in others.items()}
    differ = [f"{study} ({sign})" for study, sign in signs.items() if sign not in ours]
    if not differ:
        return f"{words}, as others find"
    reasons = [note.removeprefix(WHY) for note in notes if note.startswith(WHY)]
    return f"{words}; otherwise: {', '.join(differ)}. {' '.join(reasons) or 'The claim states no reason.'}"


def _possible(row: Measure) -> list[str]:
    """The signs that the interval holds; none if nothing was measured."""
    if row.low is None and row.high is None:
        return []
    low, high = _sign(row.low or 0.0), _sign(math.inf if row.high is None else row.high)
    return list(SIGNS[SIGNS.index(low) : SIGNS.index(high) + 1])


def _numbers(others: Sequence[Published]) -> list[float]:
    return [each.value for each in sorted(others, key=lambda each: each.parameters or 0.0)]


def _sign(value: float) -> str:
    return "faster" if value > 1 + BAND else "slower" if value < 1 / (1 + BAND) else "no difference"

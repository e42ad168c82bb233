"""What one protocol, or a measurement without training, hands to the report."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from report.results import Figure, Measure, Table

if TYPE_CHECKING:
    from inference.curves import SpeedUp


@dataclass
class Evidence:
    """The parts of results.json that it fills; notes are sentences about its limits.

    The first figure is the one that shows the verdict. speed_ups: those fitted, for the regime checks. counts: the
    quantities judged that are counted over steps.
    """

    measures: list[Measure] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    speed_ups: "Sequence[tuple[str, str, SpeedUp]]" = ()  # candidate, baseline, speed-up in steps
    counts: Sequence[str] = ()

"""What one protocol, or a measurement without training, hands to the report."""

from dataclasses import dataclass, field

from report.results import Figure, Measure, Table


@dataclass
class Evidence:
    """The parts of results.json that it fills; notes are sentences about its limits."""

    measures: list[Measure] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

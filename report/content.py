"""The content of a report and its order, the same for HTML and Markdown; pages.py renders it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from report import grids, numbers
from report.grids import Cell, Grid
from report.results import Check, Figure, Measure, Results

NO_TRAINING = "No training runs are behind this; the numbers come from the shapes of models, or from small functions."
CONTINUES = "The same command continues what was interrupted and skips runs that are finished."
SCALES = {  # from small to large
    "nano": "A miniature GPT trained for minutes on two CPU cores. It can show how the arms compare at that size, and "
    "that the machinery measures; it cannot show what happens at the paper's size and number of tokens.",
    "nano_x4": "As nano, with four times the batch and half as many steps. It can show whether a verdict depends on "
    "the batch.",
    "micro": "A small GPT trained for hours on one machine. It can show how the arms compare at that size; the paper's "
    "size and number of tokens are tens of times larger, and what holds there may differ.",
    "gpu": "A small GPT trained on one GPU. It can show how the arms compare at that size; the paper's size and number "
    "of tokens are larger, and what holds there may differ.",
    "small": "The paper's setting with GPT-2 125M. It says nothing about larger models.",
    "medium": "The paper's setting with GPT-2 355M.",
    "large": "The paper's setting with GPT-2 770M.",
}


class Section(NamedTuple):
    """A part of the report. shape: the macro of the templates that shows its content."""

    title: str
    shape: str
    content: Any

    @property
    def anchor(self) -> str:
        """Its address within the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


class Regime(NamedTuple):
    """The checks whether the runs can say anything about the claim: first those that do not pass, and how many do."""

    every: Grid
    open: Grid
    passed: Grid
    summary: str


class FirstScreen(NamedTuple):
    """What stands beside the verdict, before all else."""

    verdict: str
    regime: Regime | None
    figure: Figure | None
    scale_note: str


def first_screen(results: Results) -> FirstScreen:
    """The verdict with its scale, the checks it rests on, and the figure that shows it."""
    note = results.scale_note or (SCALES.get(results.scale, "") if results.runs else NO_TRAINING)
    figure = next((each for each in results.figures if each.name == results.key_figure), None)
    return FirstScreen(verdict_at_scale(results), _regime(results.checks), figure, note)


def verdict_at_scale(results: Results) -> str:
    """The verdict, which holds for no other scale: "weaker than claimed at nano"."""
    return f"{results.verdict} at {results.scale}" if results.scale else results.verdict


def parts(results: Results) -> list[Measure]:
    """The parts of the claim: the judged numbers of the last protocol, which the verdict follows from."""
    return [each for each in results.protocols[-1].measures if each.verdict] if results.protocols else []


def not_passed(checks: Sequence[Check]) -> list[Check]:
    """Those that fail, then those of which nothing is known."""
    return [each for each in checks if each.passed is False] + [each for each in checks if each.passed is None]


def sections(results: Results, slots: Mapping[str, int]) -> list[Section]:
    """Everything below the first screen, without what is empty. slots: of arms in the palette."""
    found = [
        Section("The parts of the claim", "grids", grids.parts(parts(results))),
        Section("What others measured", "grids", grids.published(results, slots)),
        Section("What was found", "protocols", results.protocols),
        Section("Difference between the protocols", "paragraphs", _paragraphs(results.difference)),
        Section("Figures", "figures", [each for each in results.figures if each.name != results.key_figure]),
        Section("Tables", "tables", results.tables),
        Section("Arms", "grids", grids.arms(results, slots)),
        Section("Runs", "grids", grids.runs(results, slots)),
        Section("Evidence against the claim", "bullets", results.contrary),
        Section("What of the claim could not be checked", "bullets", results.source.unverified),
        Section("The rule, fixed before the runs", "paragraphs", _paragraphs(results.rule)),
        Section("What was run", "grids", grids.provenance(results)),
        Section("Notes", "bullets", results.notes),
        Section("How to run it again", "command", results.command),
    ]
    return [section for section in found if section.content]


def arms_shown(results: Results, slots: Mapping[str, int]) -> list[tuple[str, Cell]]:
    """The arms that are in a figure, by name."""
    shown = {each.arm for figure in results.figures for each in figure.series}
    return [(arm.name, Cell(arm.label, "arm", slots[arm.name])) for arm in results.arms if arm.name in shown]


def _regime(checks: Sequence[Check]) -> Regime | None:
    if not checks:
        return None
    open_ones, passed = not_passed(checks), [each for each in checks if each.passed]
    summary = f"{numbers.count(len(passed))} of {numbers.count(len(checks))} checks pass"
    return Regime(grids.checks([*open_ones, *passed]), grids.checks(open_ones), grids.checks(passed), summary)


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part]

"""Every optimizer that the claims of a scale have tuned, in one table for the ledger.

All are tuned by the same rule and compared on the same data, length and seeds, so that their losses may be set beside
each other, whichever claim has run them. An arm counts whose label is that of its own file in configs/arm: with another
one it is run for what a claim says of it, for example with settings that are not tuned.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from assembly.model import meta_model
from configs import compose
from files.reading import read_yaml
from optim.nodes import main_node
from report import numbers
from report.results import Arm, Measure, Results, Table
from reproduce import claims
from reproduce.arms import Point
from reproduce.composed import composed
from reproduce.state import GPT2_VOCABULARY, state_of

ARMS = claims.FOLDER.parent / "arm"
MODEL = "gpt2_small"
OVER_T, STEP_TIME, REFERENCE = "full budget", "step_time", "AdamW"


@dataclass(frozen=True)
class Standing:
    """A tuned optimizer: its losses over T by seed, how many runs diverged, and where this was found."""

    label: str
    losses: tuple[float, ...]
    diverged: int
    settings: Point  # all overrides but the seed's
    step_time: float | None  # over the reference's
    claim: str

    @property
    def loss(self) -> float:
        """The mean over seeds."""
        return fmean(self.losses)


def tables(results: Sequence[Results]) -> list[Table]:
    """A table for each scale at which several optimizers have been tuned, the best first."""
    found = []
    for scale in dict.fromkeys(each.scale for each in results):
        there = [each for result in results if result.scale == scale for each in _standings(result)]
        there.sort(key=lambda each: (each.loss, each.step_time is None))
        best = dict[str, Standing]()
        for each in there:
            best.setdefault(each.label, each)
        if len(best) > 1:
            found.append(_table(scale, list(best.values())))
    return found


def _table(scale: str, standings: Sequence[Standing]) -> Table:
    model = meta_model(compose([f"model={MODEL}"]), GPT2_VOCABULARY)
    columns = ["optimizer", "val/loss", "sd over seeds", "seeds", "lr", "state, B/param", "step time", "claim"]
    rows = [
        [
            each.label,
            numbers.loss(each.loss),
            f"{stdev(each.losses):.4f}" if len(each.losses) > 1 else numbers.MISSING,
            f"{len(each.losses)}" + f", {each.diverged} diverged" * bool(each.diverged),
            f"{main_node(composed(each.settings).optim)['lr']:.2g}",
            f"{state_of(each.settings, model).per_parameter:.2f}",
            numbers.MISSING if each.step_time is None else f"{each.step_time:.2f}×",
            each.claim,
        ]
        for each in standings
    ]
    note = (
        "Mean final loss over the seeds of the comparison, which tuning never saw. Where claims were run on several "
        "machines, each tuned by itself; of an optimizer that was, the lowest mean is shown. State is that of GPT-2 "
        f"124M with these settings. Step time is over {REFERENCE}'s, measured by taking turns; of small matrices on a "
        "CPU, where what an optimizer costs weighs more than in a large model."
    )
    return Table(f"Optimizers at {scale}, all tuned by the same rule", columns, rows, note)


def _standings(results: Results) -> list[Standing]:
    found = []
    for arm in results.arms:
        runs = [run for run in results.runs if run.arm == arm.name and run.purpose == OVER_T]
        losses = tuple(run.loss for run in runs if run.status == "finished" and run.loss is not None)
        if losses and len({run.protocol for run in runs}) == 1 and _is_as_its_file(arm):
            diverged = sum(run.status == "diverged" for run in runs)
            settings = tuple(arm.overrides[runs[0].protocol])
            found.append(Standing(arm.label, losses, diverged, settings, _step_time(results, arm), results.claim))
    return found


def _is_as_its_file(arm: Arm) -> bool:
    content = read_yaml(ARMS / f"{arm.name}.yaml", may_be_link=True) or {}
    return bool(content.get("label") == arm.label)


def _step_time(results: Results, arm: Arm) -> float | None:
    """Over the reference's: as it was measured, or by way of an arm that was measured beside both."""
    if arm.label == REFERENCE:
        return 1.0
    rows = [row for each in results.protocols for row in each.measures if row.name == STEP_TIME]
    ratios = {pair: row.estimate for row in rows if row.estimate for pair in [_arms(row)]}
    over = {a: ratio for (a, b), ratio in ratios.items() if b == REFERENCE}
    ways = [over[a] / ratio for (a, b), ratio in ratios.items() if b == arm.label and a in over]
    return over.get(arm.label, ways[0] if ways else None)


def _arms(row: Measure) -> tuple[str, str]:
    """The labels of the arms whose ratio it is."""
    a, b = re.split(" against | beside ", row.label.partition(", ")[2])
    return a, b

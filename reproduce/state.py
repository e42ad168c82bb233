"""Bytes of optimizer state at a model's full size: declared by the optimizers, so nothing is allocated or trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assembly.model import meta_model
from configs import compose
from model import LanguageModel
from optim.memory import state_bytes
from report.results import Axis, Figure, Series, Table
from reproduce.arms import ArmSpec, Point
from reproduce.claim import Claim

GPT2_VOCABULARY = 50257
NOTE = (
    "Bytes of all state tensors of more than one number, as the optimizers declare them for the model's parameters in "
    f"fp32; a vocabulary of {GPT2_VOCABULARY:,}, padded as the model pads it. Exact: the same on every machine."
)


@dataclass(frozen=True)
class State:
    """The optimizer state of an arm at a size."""

    bytes: int
    parameters: int

    @property
    def per_parameter(self) -> float:
        """Bytes."""
        return self.bytes / self.parameters

    def percent_saved(self, baseline: "State") -> float:
        """Returns how many percent of the baseline's bytes are saved; negative if there are more."""
        return 100 * (1 - self.bytes / baseline.bytes)


@dataclass(frozen=True)
class States:
    """The state of every arm of a claim at every size."""

    claim: Claim[Any]
    found: Mapping[str, Mapping[str, State]]  # arm -> size -> state

    def of(self, arm: ArmSpec, size: str) -> State:
        """One of them."""
        return self.found[arm.name][size]

    def percent_saved(self, arm: ArmSpec, size: str) -> float:
        """Returns how many percent of the baseline's bytes an arm saves at that size."""
        return self.of(arm, size).percent_saved(self.of(self.claim.baseline, size))

    def figure(self) -> Figure:
        """Bars of bytes per parameter."""
        series = [
            Series(arm.label, list(own), [state.per_parameter for state in own.values()], arm=arm.name)
            for arm in self.claim.arms
            for own in [self.found[arm.name]]
        ]
        axes = Axis("model"), Axis("bytes of optimizer state per parameter")
        return Figure("state_bytes", "Optimizer state", "bars", *axes, series)

    def table(self) -> Table:
        """Megabytes, per parameter, and what is saved."""
        rows, sizes = [], list(next(iter(self.found.values()), {}))
        for arm in self.claim.arms:
            cells = []
            for size, state in self.found[arm.name].items():
                saved = self.percent_saved(arm, size)
                cells.append(f"{state.bytes / 1e6:,.1f} ({state.per_parameter:.3f}; {saved:.1f} %)")
            rows.append([arm.label, *cells])
        baseline = self.claim.baseline.label
        note = f"In brackets: bytes per parameter; percent saved against {baseline}. MB: 10^6 bytes."
        return Table("Optimizer state, MB", ["optimizer", *sizes], rows, note)


def states(claim: Claim[Any], sizes: Sequence[str]) -> States:
    """Returns the state of the claim's arms; sizes: options of model. Raises: ConfigError: if there is no such size."""
    models = {size: meta_model(compose([f"model={size}"]), GPT2_VOCABULARY) for size in sizes}
    return States(
        claim,
        {arm.name: {size: state_of(arm.overrides, model) for size, model in models.items()} for arm in claim.arms},
    )


def state_of(overrides: Point, model: LanguageModel) -> State:
    """Returns the state of the optimizer of these overrides for a model, which may be on the meta device."""
    parameters = dict(model.named_parameters())
    return State(
        state_bytes(compose(list(overrides)).optim, parameters, model.roles()),
        sum(p.numel() for p in parameters.values()),
    )

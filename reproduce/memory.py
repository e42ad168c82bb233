"""Bytes of optimizer state at a model's full size: declared by the optimizers, so nothing is allocated or trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from configs import compose
from configs.plug_ins import check_fields
from files.reading import number
from model import GPT, GPTConfig
from optim.memory import state_bytes
from report.results import Axis, Figure, Measure, Series, Table
from reproduce.evidence import Evidence
from reproduce.statistics import Interval, decide

GPT2_VOCABULARY = 50257
ROUNDING = 0.05  # percentage points: papers print one decimal


class MemoryClaimError(ValueError):
    """Settings that make no sense; one clear line."""


@dataclass(frozen=True)
class Settings:
    """What a claim file sets.

    arms: by name, overrides of train.py that choose an optimizer, such as [optim=adafactor, optim.beta1=null]. sizes:
    options of model. baseline: the arm that savings are counted from. claims: mappings with arm and percent_saved, the
    paper's [low, high]; with size, of that size alone. labels: of arms, for people.

    Raises: MemoryClaimError: if they name an arm or a size that is not there, or a range is none.
    """

    arms: Mapping[str, Sequence[str]]
    sizes: Sequence[str]
    baseline: str
    claims: Sequence[Mapping[str, Any]] = ()
    labels: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        self._require(self.baseline, self.arms, "baseline", "an arm")
        for claim in self.claims:
            if odd := sorted(claim.keys() - {"arm", "percent_saved", "size"}):
                raise MemoryClaimError(f"memory: a claim has no {odd[0]!r}; it has arm, percent_saved and size")
            self._require(claim.get("arm"), self.arms, "claims: arm", "an arm")
            self._require(claim.get("size", self.sizes[0]), self.sizes, "claims: size", "a size")
            values = claim.get("percent_saved")
            numbers = [number(each) or 0.0 for each in values] if isinstance(values, list | tuple) else []
            if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] <= 100:
                raise MemoryClaimError(
                    f"memory: claims: percent_saved={values!r} of {claim['arm']} must be [low, high], in (0, 100]"
                )

    def label(self, arm: str) -> str:
        """Of an arm, for people."""
        return (self.labels or {}).get(arm, arm)

    def _require(self, name: Any, known: Any, key: str, what: str) -> None:
        if not isinstance(name, str) or name not in known:
            raise MemoryClaimError(f"memory: {key}={name!r} must be {what}: {', '.join(known)}")


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
        """Of the baseline's bytes; negative if there are more."""
        return 100 * (1 - self.bytes / baseline.bytes)


def state_memory(settings: Mapping[str, Any]) -> Evidence:
    """Every arm's state at every size, and the savings that the claim makes; settings: fields of Settings.

    Raises: MemoryClaimError, or ConfigError: if the settings are wrong.
    """
    chosen = _checked(settings)
    models = {size: _on_meta(size) for size in chosen.sizes}
    states = {
        arm: {size: _state(overrides, model) for size, model in models.items()}
        for arm, overrides in chosen.arms.items()
    }
    return Evidence(
        measures=[measure for claim in chosen.claims for measure in _measures(claim, chosen, states)],
        figures=[_figure(chosen, states)],
        tables=[_table(chosen, states)],
        notes=[
            "Bytes of all state tensors of more than one number, as the optimizers declare them for the model's "
            f"parameters in fp32; a vocabulary of {GPT2_VOCABULARY:,}, padded as the model pads it. Exact: the same "
            "on every machine."
        ],
    )


def _checked(settings: Mapping[str, Any]) -> Settings:
    known = [field.name for field in fields(Settings)]
    if odd := sorted(settings.keys() - set(known)):
        raise MemoryClaimError(f"memory: there is no setting {odd[0]!r}; it has {', '.join(known)}")
    for name in ("arms", "sizes", "baseline"):
        if not settings.get(name):
            raise MemoryClaimError(f"memory: setting {name!r} is missing or empty")
    check_fields(Settings, settings, "memory: ")
    return Settings(**settings)


def _on_meta(size: str) -> GPT:
    shape = {**compose([f"model={size}"]).model, "vocab_size": GPT2_VOCABULARY}
    with torch.device("meta"):
        return GPT(GPTConfig(**shape))


def _state(overrides: Sequence[str], model: GPT) -> State:
    parameters = dict(model.named_parameters())
    return State(
        state_bytes(compose(list(overrides)).optim, parameters, model.roles()),
        sum(p.numel() for p in parameters.values()),
    )


def _measures(claim: Mapping[str, Any], settings: Settings, states: Mapping[str, Mapping[str, State]]) -> list[Measure]:
    """One for every size that the claim is about: exact, but compared to the digit that the paper prints."""
    arm, (low, high) = claim["arm"], claim["percent_saved"]
    measures = []
    for size in [claim["size"]] if "size" in claim else settings.sizes:
        saved = states[arm][size].percent_saved(states[settings.baseline][size])
        rounded = Interval(saved, saved - ROUNDING, saved + ROUNDING)
        printed = f"{low} %" if low == high else f"{low} to {high} %"
        measures.append(
            Measure(
                name=f"state_saved_{arm}_{size}",
                label=f"optimizer state saved against {settings.label(settings.baseline)}, "
                f"{settings.label(arm)}, {size}",
                unit="%",
                estimate=saved,
                low=saved,
                high=saved,
                claimed=low,
                no_effect=0.0,
                verdict=decide(rounded, claimed=low, no_effect=0.0),
                note=f"claimed: {printed}" + ("; more is saved" if saved > high + ROUNDING else ""),
            )
        )
    return measures


def _figure(settings: Settings, states: Mapping[str, Mapping[str, State]]) -> Figure:
    series = [
        Series(settings.label(arm), list(settings.sizes), [state.per_parameter for state in found.values()], arm=arm)
        for arm, found in states.items()
    ]
    axes = Axis("model"), Axis("bytes of optimizer state per parameter")
    return Figure("state_bytes", "Optimizer state", "bars", *axes, series)


def _table(settings: Settings, states: Mapping[str, Mapping[str, State]]) -> Table:
    rows = []
    for arm, found in states.items():
        cells = []
        for size, state in found.items():
            saved = state.percent_saved(states[settings.baseline][size])
            cells.append(f"{state.bytes / 1e6:,.1f} ({state.per_parameter:.3f}; {saved:.1f} %)")
        rows.append([settings.label(arm), *cells])
    columns = ["optimizer", *settings.sizes]
    note = (
        f"In brackets: bytes per parameter; percent saved against {settings.label(settings.baseline)}. MB: 10^6 bytes."
    )
    return Table("Optimizer state, MB", columns, rows, note)

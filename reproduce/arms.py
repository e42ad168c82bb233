"""The arms that claims compare: configs/arm/<name>.yaml, shared, so that a baseline is tuned once for all claims.

A file holds label, overrides, the usual settings, the axes of tuning and, under `scales`, what differs at a scale. A
claim names the file, or states an arm by itself; its own keys replace those of the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from files.errors import ReadingError
from files.reading import read_yaml
from reproduce.fields import limited, nearest
from reproduce.mistakes import ClaimError, Mistakes

ROLES = ("baseline", "candidate", "other")
Point = tuple[str, ...]  # overrides of one set of hyperparameters
Coordinates = Mapping[str, float]  # axis -> value


@dataclass
class AxisFields:
    """A hyperparameter that tuning varies by factors of 2.

    sets: overrides with {} for the value. complement: the factor is that of 1 - value, as for the decay of an average.
    is_count: values are whole numbers. most: the largest value.
    """

    sets: list[str] = limited(words="a list of overrides with {} for the value, such as ['optim.lr={}']")
    start: float = limited(above=0)
    complement: bool = False
    is_count: bool = False
    most: float | None = limited(None, above=0)


@dataclass
class ItselfFields:
    """A condition under which an optimizer works as it is meant to (check R6).

    Either an average: `beta`, the key of its decay, which is updated every `every` steps (a number or a key) and must
    have settled to the share `settled` by the end of the run; or `diagnostic`, whose mean over the last half of a run
    must lie within low and high.
    """

    label: str = limited()
    beta: str = ""
    every: str = "1"
    settled: float = limited(0.9, above=0, most=1)
    diagnostic: str = ""
    low: float | None = None
    high: float | None = None


@dataclass
class ArmFields:
    """An arm as its file states it; see ArmSpec."""

    label: str
    role: str = limited(choices=ROLES)
    overrides: list[str] = limited(words="a list of overrides such as [optim.lr=1e-3]")
    paper: list[str] = field(default_factory=list)
    usual: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    axes: dict[str, AxisFields] = field(default_factory=dict)
    memories: list[str] = field(default_factory=list)
    itself: list[ItselfFields] = field(default_factory=list)


@dataclass
class CarriedFields:
    """Where tuning of the rate starts at a scale: at that of another one, times a factor.

    By muP (arXiv:2203.03466) the rate of matrices falls with the width. It is a start: tuning goes on from there.
    """

    scale: str = limited()
    factor: float = limited(above=0)


class Axis(NamedTuple):
    """See AxisFields; name: for people."""

    name: str
    sets: tuple[str, ...]
    start: float
    complement: bool = False
    is_count: bool = False
    most: float | None = None

    def value(self, start: float, doublings: float) -> float:
        """The value so many doublings (of 1 - value for a complement) from the start, as it is written."""
        found = 1 - (1 - start) * 2.0**-doublings if self.complement else start * 2.0**doublings
        return float(max(1, round(found))) if self.is_count else float(f"{found:.4g}")

    def overrides(self, value: float) -> Point:
        """The overrides that set the value."""
        text = f"{int(value)}" if self.is_count else f"{value:.6g}"
        return tuple(each.replace("{}", text) for each in self.sets)

    def holds(self, value: float) -> bool:
        """Whether the value is within its limits."""
        return value > 0 and (not self.complement or value < 1) and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class ArmSpec:
    """One of the things compared.

    paper: the paper's hyperparameters. usual: those that people take without tuning. fixed: hyperparameters in place of
    tuning. axes: in the order of tuning. memories: keys of the decays of its moments. itself: see ItselfFields.
    """

    name: str
    label: str
    role: str  # one of ROLES
    overrides: Point  # of all its runs
    paper: Point = ()
    usual: Point = ()
    fixed: Point = ()
    axes: tuple[Axis, ...] = ()
    memories: tuple[str, ...] = ()
    itself: tuple[ItselfFields, ...] = ()

    @property
    def start(self) -> Coordinates:
        """Where tuning starts."""
        return {axis.name: axis.start for axis in self.axes}

    def point(self, coordinates: Coordinates) -> Point:
        """The overrides of these values of its axes."""
        return tuple(override for axis in self.axes for override in axis.overrides(coordinates[axis.name]))


def merged(
    name: str, own: Mapping[str, Any], scale: str, folder: Path, carried: CarriedFields | None = None
) -> dict[str, Any]:
    """The fields of an arm: its file's, what that changes at the scale, and the claim's own over them.

    own: may name the file with `of`, else it is that of the arm's own name, if there is one. carried: where the rate
    starts, if the file does not say so for the scale.

    Raises: ClaimError: if the file does not exist or cannot be read.
    """
    rest = {key: value for key, value in own.items() if key != "of"}
    of = str(own.get("of", name))
    path = folder / f"{of}.yaml"
    if not path.is_file():
        if "of" in own:
            known = sorted(each.stem for each in folder.glob("*.yaml"))
            raise ClaimError(f"arm {name}: of={of!r} is no file of {folder}; {nearest(of, known)}")
        return rest
    try:
        content = read_yaml(path, may_be_link=True) or {}
    except ReadingError as error:
        raise ClaimError(str(error)) from None
    scales = content.pop("scales", None) or {}
    found = content if carried is None else _carried(content, scales.get(carried.scale) or {}, carried.factor)
    for changes in (scales.get(scale) or {}, rest):
        found = _over(found, changes)
    return found


def _carried(content: dict[str, Any], there: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The content with the start of its first axis, the rate, as it is there, times the factor."""
    axes = _over({"axes": content.get("axes") or {}}, {"axes": there.get("axes") or {}})["axes"]
    rate = next(iter(axes), None)
    start = axes[rate].get("start") if rate is not None and isinstance(axes[rate], Mapping) else None
    if not isinstance(start, int | float):
        return content  # what is wrong with it is said where the fields are checked
    return _over(content, {"axes": {rate: {"start": float(f"{start * factor:.4g}")}}})


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of both; `overrides` are added, `axes` replaced key by key."""
    found = {**below, **above}
    if "overrides" in below and "overrides" in above:
        found["overrides"] = [*(below["overrides"] or []), *(above["overrides"] or [])]
    if isinstance(below.get("axes"), Mapping) and isinstance(above.get("axes"), Mapping):
        axes = dict(below["axes"])
        for name, axis in above["axes"].items():
            axes[name] = {**axes.get(name, {}), **axis} if isinstance(axis, Mapping) else axis
        found["axes"] = {name: axis for name, axis in axes.items() if axis is not None}
    return found


def spec(name: str, fields: ArmFields, more: tuple[Axis, ...] = ()) -> ArmSpec:
    """The arm with its checked fields. more: axes that every arm has, after its own.

    Raises: ClaimError: if axes set nothing, or a complement starts at no decay.
    """
    mistakes = Mistakes()
    for axis_name, axis in fields.axes.items():
        with mistakes.collected(f"arm {name}: axes.{axis_name}."):
            _check_axis(axis)
    sets = [key.partition("=")[0] for axis in fields.axes.values() for key in axis.sets]
    if twice := sorted({key for key in sets if sets.count(key) > 1}):
        mistakes.lines.append(f"arm {name}: axes: {twice[0]} is set twice; every axis is of other keys")
    mistakes.raise_all()
    axes = tuple(
        Axis(axis_name, tuple(axis.sets), axis.start, axis.complement, axis.is_count, axis.most)
        for axis_name, axis in fields.axes.items()
    )
    return ArmSpec(
        name=name,
        label=fields.label,
        role=fields.role,
        overrides=tuple(fields.overrides),
        paper=tuple(fields.paper),
        usual=tuple(fields.usual),
        fixed=tuple(fields.fixed),
        axes=(*axes, *more) if axes and not fields.fixed else (),
        memories=tuple(fields.memories),
        itself=tuple(fields.itself),
    )


def _check_axis(axis: AxisFields) -> None:
    if not axis.sets or not all("{}" in each for each in axis.sets):
        raise ClaimError(f"sets={axis.sets} must list overrides with {{}} for the value")
    if axis.complement and axis.start >= 1:
        raise ClaimError(f"start={axis.start:g} must be < 1, as complement is true")

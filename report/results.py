"""results.json: everything a report shows, in plain numbers and words.

The classes are the schema: a field's name is its key, None is null, losses are in nats per token, times in seconds.
read() refuses what another version wrote.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from files.errors import shown
from files.reading import number, read_json
from files.writing import write_text

SCHEMA = 3
VERDICTS = ("reproduced", "weaker than claimed", "no effect or worse", "undecided", "out of regime")


class ResultsError(ValueError):
    """No usable results; one clear line."""


@dataclass
class Measure:
    """One number with its interval, beside what the paper claims and what no effect would be."""

    name: str  # such as step_time
    label: str  # for people: "speed-up in steps, fitted curve"
    unit: str  # "x", "nats per token", "%", "bytes per parameter", "" ...
    estimate: float | None  # None: it could not be measured, note says why
    low: float | None = None
    high: float | None = None
    n: int | None = None  # seeds behind it
    sd: float | None = None  # over seeds
    claimed: float | None = None
    least: float | None = None  # the end of the claim's own rounding nearest to no effect
    no_effect: float | None = None
    log_scale: bool = False  # a ratio: the middle between no effect and claim is the geometric one
    verdict: str | None = None  # one of VERDICTS where it is a part of the claim
    censored: str = ""  # "<" or ">": the number lies beyond what was run, on that side of the only bound there is
    note: str = ""
    bounds: str = "95 % interval"  # what low and high are


@dataclass
class Check:
    """Whether the runs can say anything about the claim, in one respect (R1 to R11 in docs/claims.md)."""

    id: str  # such as R2
    label: str  # what is checked, for people
    threshold: str  # what passes, in words
    value: str  # what was found, in words
    passed: bool | None  # None: it could not be found out, note says why
    note: str = ""


TAGS = ("printed", "authors' files", "thread", "computed", "unverified")  # docs/claims.md says what they mean


@dataclass
class Published:
    """What others measured, as a fact with its source."""

    label: str  # for people: "Wen et al. 2025, 130M, 8x Chinchilla"
    source: str  # where it stands: arXiv number, repository and file, issue
    tag: str  # how we know, one of TAGS
    setting: str  # model, data, tokens, in a few words
    quantity: str  # what the value is: "speed-up in steps", "loss difference", ...
    value: float
    arm: str  # the arm that it is about
    parameters: float | None = None  # of the model, for the axis of the figure
    low: float | None = None
    high: float | None = None
    unit: str = ""  # as in Measure


@dataclass
class ProtocolResult:
    """What one protocol found."""

    name: str  # "paper", "tuned", or the kind of a claim without training
    description: str
    verdict: str
    sentence: str  # the verdict in words, with its number
    more_seeds: int | None = None  # how many more it would take, where undecided
    measures: list[Measure] = field(default_factory=list)


@dataclass
class Series:
    """One line, or one set of bars or points."""

    name: str
    x: list[float] | list[str]
    y: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    arm: str | None = None  # series of an arm share a colour and a toggle
    dashed: bool = False
    hollow: bool = False  # what others measured, in a figure of points
    labels: list[str] | None = None  # of every point, for those who point at it


@dataclass
class Axis:
    """What an axis shows."""

    label: str
    log: bool = False


@dataclass
class Figure:
    """A plot. alternatives: other quantities for the x axis of the same lines, by label (steps, tokens, FLOPs, ...)."""

    name: str  # of its files
    title: str
    kind: str  # "lines", "bars" or "points"
    x: Axis
    y: Axis
    series: list[Series]
    alternatives: dict[str, list[list[float]]] = field(default_factory=dict)  # label -> x of every series
    caption: str = ""
    hline: float | None = None  # a level to compare with, such as the baseline's final loss
    hline_label: str = ""


@dataclass
class Table:
    """Cells as people read them."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass
class Arm:
    """One of the things compared."""

    name: str
    label: str
    role: str  # "baseline", "candidate" or "other"
    overrides: dict[str, list[str]]  # by protocol: what it was run with, tuning's choice included
    tuning: str = ""  # what the tuning tried and chose, in a sentence


@dataclass
class Run:
    """One training run; diverged ones stay."""

    name: str  # its folder below runs/
    arm: str
    protocol: str
    purpose: str  # "tuning", "half budget", "full budget", "curve", ...
    seed: int
    steps: int
    status: str  # "finished", "diverged", "failed"
    overrides: list[str]
    config_hash: str
    loss: float | None  # final val/loss
    seconds: float | None  # in training steps
    flops: float | None
    bits_per_byte: float | None = None  # final val/bits_per_byte
    peak_bytes: float | None = None
    clipped_share: float | None = None  # of steps
    diagnostics: dict[str, float] = field(default_factory=dict)  # those shown, such as optim/update_ratio: means
    commit: str | None = None


def diagnostic_name(key: str) -> str:
    """For people: that of optim/update_ratio is "update ratio"."""
    return key.partition("/")[2].replace("_", " ")


@dataclass
class Source:
    """Where the claim comes from."""

    paper: str
    url: str
    statement: str  # in our words, with the paper's numbers
    setting: str
    unverified: list[str] = field(default_factory=list)  # what of this could not be checked


@dataclass
class Results:
    """A claim's outcome at one scale."""

    claim: str
    title: str
    scale: str
    date: str  # ISO, of the last run
    command: str
    source: Source
    contrary: list[str]  # published evidence against, or limits of the claim
    rule: str  # how the verdict follows from the numbers, stated before the runs
    verdict: str  # of the whole claim
    sentence: str
    protocols: list[ProtocolResult]  # the verdict follows from the last
    tuning: str = ""  # in words, what tuning alone gave the baseline
    checks: list[Check] = field(default_factory=list)
    key_figure: str = ""  # the name of the figure that shows the verdict
    published: list[Published] = field(default_factory=list)
    difference: str = ""  # between the protocols, in words
    arms: list[Arm] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    curves: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)  # run -> step, tokens, ..., val/loss
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)  # device, threads, versions, commit
    data: dict[str, str] = field(default_factory=dict)  # checksums by split
    notes: list[str] = field(default_factory=list)
    scale_note: str = ""  # what this scale can and cannot show; the report has words of its own for training runs
    schema: int = SCHEMA


def finite(results: Results) -> Results:
    """The results with None for every number that is not finite: JSON has none, and the report shows none."""
    found = made(Results, _finite(asdict(results)), "results", "")
    assert isinstance(found, Results)
    return found


def write(results: Results, path: Path) -> None:
    """Replaces the file at path; all numbers must be finite."""
    write_text(path, json.dumps(asdict(results), indent=1, allow_nan=False) + "\n")


def read(path: Path) -> Results:
    """The results in a file.

    Raises: ResultsError: if it is of another version, or no results at all. ReadingError: if it is damaged.
    """
    content = read_json(path)
    if content is None or "schema" not in content:
        raise ResultsError(f"{path} holds no results" if content else f"{path} does not exist")
    if content["schema"] != SCHEMA:
        raise ResultsError(
            f"{path} was written by another version (schema {shown(content['schema'])}, this one reads {SCHEMA}); move "
            "the folder away, the same command then starts anew"
        )
    results = made(Results, content, str(path), "")
    assert isinstance(results, Results)
    return results


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def made(kind: Any, value: Any, path: str, key: str) -> Any:
    """The value of a field, dataclasses restored. Raises: ResultsError: if it is of another type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, UnionType):
        return _made_one_of(arguments, value, path, key)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return _made_dataclass(kind, value, path, key)
    if origin is list and isinstance(value, list):
        return [made(arguments[0], each, path, f"{key}[{n}]") for n, each in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: made(arguments[1], each, path, f"{key}.{name}") for name, each in value.items()}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        Any: True,
        float: is_number,
        int: is_number and isinstance(value, int),
        str: isinstance(value, str),
        bool: isinstance(value, bool),
        NoneType: value is None,
    }
    if not fits.get(kind, False):
        raise ResultsError(f"{path}: {key}={shown(value)} is not what results have there")
    return value


def _made_one_of(kinds: Sequence[Any], value: Any, path: str, key: str) -> Any:
    for kind in kinds[:-1]:
        with suppress(ResultsError):
            return made(kind, value, path, key)
    return made(kinds[-1], value, path, key)


def _made_dataclass(kind: Any, value: Mapping[str, Any], path: str, key: str) -> Any:
    hints, where = get_type_hints(kind), f"{key}." if key else ""
    known = {each.name: each.default is MISSING and each.default_factory is MISSING for each in fields(kind)}
    for name in value:
        if name not in known:
            raise ResultsError(f"{path}: {where}{shown(name)} is no field of results")
    for name, is_required in known.items():
        if is_required and name not in value:
            raise ResultsError(f"{path}: {where}{name} is missing")
    return kind(**{name: made(hints[name], each, path, f"{where}{name}") for name, each in value.items()})

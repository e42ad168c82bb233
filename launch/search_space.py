"""What a search varies: ranges and choices, checked, and their values as overrides."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from configs import ConfigError, RunConfig, composed
from configs.overrides import given, has_several, written
from files.errors import shown

MOST_VALUES = 1e9  # of a range with a step
FIELDS = ("low", "high", "log", "step")
EXAMPLE = "'search.space.optim.lr={low: 1e-4, high: 1e-2, log: true}'"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high. step: their distance, if not all between are meant. Ends of ints: whole numbers."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(each, int) for each in (self.low, self.high, 1 if self.step is None else self.step))


@dataclass(frozen=True)
class Choices:
    """Some values, as they are written in an override."""

    values: tuple[str, ...]


Space = Mapping[str, Range | Choices]  # by key or group


class Checked(NamedTuple):
    """A space of which every end is a valid run.

    settings: what all runs share, as configs.composed has it. sample: the overrides of one of the runs. longest: the
    configuration of the one with the most steps.
    """

    space: dict[str, Range | Choices]
    settings: dict[str, Any]
    sample: tuple[str, ...]
    longest: RunConfig

    @property
    def content(self) -> dict[str, Any]:
        """The space as plain data."""
        return {key: asdict(each) for key, each in sorted(self.space.items())}


def read_space(given_space: Mapping[str, Any]) -> dict[str, Range | Choices]:
    """The space that search.space.* describes. Raises: ConfigError: a line for each mistake."""
    if not given_space:
        raise ConfigError(f"search.space is empty; give what to vary, for example {EXAMPLE}")
    found: dict[str, Range | Choices] = {}
    mistakes: list[str] = []
    for key, value in _entries(given_space, ""):
        try:
            found[key] = _choices(key, value) if isinstance(value, list) else _range(value)
        except ConfigError as error:
            mistakes.append(f"search.space.{key}: {error}")
    if mistakes:
        raise ConfigError(*mistakes)
    return found


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """The overrides that set the values of a trial: those of choices are written already, numbers with all digits."""
    return [f"{key}={value if isinstance(value, str) else written(value)}" for key, value in values.items()]


def check(space: Space, fixed: Sequence[str]) -> Checked:
    """Composes a run for both ends of every range, and for every choice.

    Raises: ConfigError: if one does not compose, a key is fixed, too, or its values make one run.
    """
    for override in map(given, fixed):
        if override.key in space:
            raise ConfigError(f"search.space.{override.key}: the key is varied; leave out {shown(override.text)}")
    first = {key: _values(each)[0] for key, each in space.items()}
    found = {key: _typed(key, each, first, fixed) for key, each in space.items()}
    first = {key: _values(each)[0] for key, each in found.items()}
    runs = [_composed(first, fixed)]
    for key, each in found.items():
        own = [_composed(first | {key: value}, fixed) for value in _values(each)]
        _check_differ(key, [config for config, _ in own], [settings for _, settings in own])
        runs += own
    settings = {key: value for key, value in runs[0][1].items() if key not in space}
    sample = (*fixed, *overrides_of(first))
    return Checked(found, settings, sample, max((config for config, _ in runs), key=lambda config: config.max_steps))


def _entries(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and what stands there; a file may nest keys."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and not set(value) & set(FIELDS):
            yield from _entries(value, f"{key}.")
        else:
            yield key, value


def _choices(key: str, values: Sequence[Any]) -> Choices:
    if not values:
        raise ConfigError("the list of choices is empty")
    if len(found := tuple(dict.fromkeys(map(written, values)))) == 1:
        raise ConfigError(f"{found[0]} is the only choice; give it to all runs, {key}={found[0]}")
    return Choices(found)


def _range(value: Any) -> Range:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{shown(value)} must be a range, {{low: ..., high: ...}}, or a list of choices")
    if unknown := [name for name in value if name not in FIELDS]:
        raise ConfigError(f"a range has no {shown(unknown[0])}; it has {', '.join(FIELDS)}")
    for name in ("low", "high", "step"):
        if (name != "step" or value.get("step") is not None) and not _is_number(value.get(name)):
            raise ConfigError(
                f"{name} must be a number, it is {shown(value.get(name))}" if name in value else f"{name} is missing"
            )
    if not isinstance(value.get("log", False), bool):
        raise ConfigError(f"log must be true or false, it is {shown(value['log'])}")
    found = Range(**value)
    if found.low >= found.high:
        raise ConfigError(f"low={shown(found.low)} must be < high={shown(found.high)}")
    if found.log and found.low <= 0:
        raise ConfigError(f"low={shown(found.low)} must be > 0 where log is true")
    if found.step is not None and (found.log or not 0 < found.step <= found.high - found.low):
        raise ConfigError(
            "step and log exclude each other; leave out one of them"
            if found.log
            else f"step={shown(found.step)} must be > 0 and at most high - low"
        )
    if found.step is not None and (found.high - found.low) / found.step > MOST_VALUES:
        raise ConfigError(f"step={shown(found.step)} is too small for high - low; leave it out")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _values(each: Range | Choices) -> list[Any]:
    """Those that are checked: every choice; the ends of a range, and between them the second value if it has steps."""
    if isinstance(each, Choices):
        return list(each.values)
    second = each.low + (each.step or 1) if each.is_whole or each.step else each.high
    return [each.low, *([second] if second < each.high else []), each.high]


def _typed(key: str, each: Range | Choices, first: Mapping[str, Any], fixed: Sequence[str]) -> Range | Choices:
    """The range, of fractions if an end is one, or if the key takes them and no whole step says otherwise."""
    if isinstance(each, Choices):
        return each
    if each.is_whole:
        if each.step is not None:
            return each
        try:
            _composed({**first, key: each.low + 0.5}, fixed)
        except ConfigError:
            return each
    return replace(each, low=float(each.low), high=float(each.high), step=each.step and float(each.step))


def _composed(values: Mapping[str, Any], fixed: Sequence[str]) -> tuple[RunConfig, dict[str, Any]]:
    try:
        return composed([*fixed, *overrides_of(values)])
    except ConfigError as error:
        for override in map(given, fixed):
            if has_several(override.raw or "") and str(error).startswith(f"{override.key}="):
                raise ConfigError(
                    f"{shown(override.text)} has several values; give one, or let the search choose: "
                    f"search.space.{override.key}=[...,...]"
                ) from None
        raise ConfigError(f"search.space: {error}") from None


def _check_differ(key: str, configs: Sequence[RunConfig], settings: Sequence[Mapping[str, Any]]) -> None:
    if len(configs) > 1 and settings[0] == settings[-1]:
        raise ConfigError(f"search.space.{key}: the result of a run does not depend on {key}; leave it out")
    if len(configs) > 1 and configs[0].run_dir == configs[-1].run_dir:
        raise ConfigError(f"search.space.{key}: all runs would write run_dir={configs[0].run_dir}; leave run_dir out")

"""configs/claim/<id>.yaml to a checked Claim at a scale.

A file holds what the claim says (title, source, contrary, rule), how it is tested (kind, arms, and the fields of its
kind) and, under `scales`, what differs from scale to scale: the keys of a scale replace those of the file, and those of
an arm there replace the arm's. Nothing runs before everything here has been checked, every arm composed included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import configs
from configs import RunConfig
from configs import overrides as grammar
from configs.plug_ins import TARGET, is_trusted
from files.errors import ReadingError, shown
from files.reading import read_yaml
from reproduce.results import ResultsError, Source, made

FOLDER = configs.FOLDER / "claim"
ROLES = ("baseline", "candidate", "other")
# Keys in which the arms of a claim must agree, unless `differs` names them: what they see, and how much of it.
SHARED = ("data", "global_batch", "model.block_size")

Point = tuple[str, ...]  # overrides of one set of hyperparameters
TEXT, WORDS, NUMBER, COUNT, TABLE, ROWS = "a text", "a list of texts", "a number", "a count", "a mapping", "a list"
FLAG, SIZE, SHARE = "true or false", "a whole number of at least 1", "a number in (0, 1]"

# Fields of every claim, then those that a kind adds. True: required.
FIELDS: dict[str, tuple[str, bool]] = {
    "title": (TEXT, True),
    "kind": (TEXT, True),
    "source": (TABLE, True),
    "contrary": (WORDS, True),
    "rule": (TEXT, True),
    "arms": (TABLE, True),
    "overrides": (WORDS, True),
    "statements": (ROWS, False),
    "notes": (WORDS, False),
}
TRAINING: dict[str, tuple[str, bool]] = {
    "budget": (SIZE, True),
    "seeds": (ROWS, True),
    "tuning_seed": (COUNT, True),
    "warmup_steps": (COUNT, False),
    "warmup_fraction": (SHARE, False),
    "evaluations": (SIZE, True),
    "differs": (WORDS, False),
    "drop_checkpoints": (FLAG, False),  # of finished runs, which need none
}
KINDS: dict[str, dict[str, tuple[str, bool]]] = {
    "speed_up": {
        **TRAINING,
        "protocols": (WORDS, True),
        "untuned": (TEXT, False),
        "fractions": (TABLE, True),
        "halving": (ROWS, True),
        "comparisons": (ROWS, True),
        "timing_steps": (SIZE, True),  # of a block; a multiple of what the optimizers do every so many steps
    },
    "sweep": {
        **TRAINING,
        "axis": (TEXT, True),
        "chosen": (TEXT, True),
        "near": (ROWS, False),  # nats above the best, for the table of robustness
        "expect": (ROWS, True),
    },
    "overhead": {"settings": (TABLE, True), "expect": (ROWS, True)},
    "memory": {"settings": (TABLE, True)},
    "toy": {"settings": (TABLE, True)},
}
ARM = {"label", "role", "overrides", "paper", "grid"}
CHOSEN = ("best", "ends")
NO_EFFECT = {"steps": 1.0, "flops": 1.0, "seconds": 1.0, "gap": 0.0}  # of what a comparison may claim
EXPECTED = {  # what a row of `expect` may measure
    "sweep": ("best_loss", "degradation", "clipped_share", "win_rate"),
    "overhead": ("step_time", "state_bytes"),
}
PROTOCOLS = ("paper", "tuned")


class ClaimError(ValueError):
    """A claim that cannot be run; one clear line that names the file and the field."""


@dataclass(frozen=True)
class ArmSpec:
    """One of the things compared, and the points of its hyperparameters."""

    name: str
    label: str
    role: str  # one of ROLES
    overrides: Point  # of all its runs
    paper: Point = ()  # the paper's hyperparameters
    grid: tuple[Point, ...] = ()  # what tuning tries, or a sweep's points; the first override is the axis


@dataclass(frozen=True)
class Claim:
    """A claim at a scale. fields: those of its kind, checked."""

    id: str
    scale: str
    title: str
    kind: str
    source: Source
    contrary: list[str]
    rule: str
    arms: tuple[ArmSpec, ...]
    common: Point  # overrides of every run
    fields: Mapping[str, Any]

    def arm(self, name: str) -> ArmSpec:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def baseline(self) -> ArmSpec:
        """The first arm with that role."""
        return next(arm for arm in self.arms if arm.role == "baseline")

    @property
    def budget(self) -> int:
        """T, in steps."""
        return int(self.fields["budget"])

    @property
    def seeds(self) -> list[int]:
        """Of the comparison; tuning has another."""
        return list(self.fields["seeds"])


def names(folder: Path = FOLDER) -> list[str]:
    """The claims there are."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def scales(name: str, folder: Path = FOLDER) -> list[str]:
    """The scales that a claim has, smallest first."""
    return list(_content(name, folder).get("scales") or {})


def title(name: str, folder: Path = FOLDER) -> str:
    """Of a claim."""
    return str(_content(name, folder).get("title"))


def load(
    name: str, scale: str, overrides: Sequence[str] = (), *, folder: Path = FOLDER, n_seeds: int | None = None
) -> Claim:
    """The claim of that name at a scale, checked; overrides are added to those of every run.

    n_seeds: compare with so many seeds instead of the file's; the file's come first.

    Raises: ClaimError: if there is no such claim or scale, or the file is wrong.
    ConfigError: if an arm does not compose.
    """
    content = _content(name, folder)
    claim_scales = content.pop("scales", None) or {}
    where = f"{folder / name}.yaml"
    if scale not in claim_scales:
        raise ClaimError(f"claim {name} has no scale {scale!r}; {_nearest(scale, list(claim_scales))}")
    fields = _merged(content, claim_scales[scale] or {})
    where += f", scale {scale}"
    _check_fields(fields, where)
    _check_trust(_claim(name, scale, fields, (), where), where)
    claim = _claim(name, scale, fields, tuple(overrides), where)
    _check_kind(claim, where)
    if n_seeds is not None:
        claim = _with_seeds(claim, n_seeds)
    _check_arms_compose(claim, where)
    return claim


@lru_cache(maxsize=1024)
def composed(overrides: Point) -> RunConfig:
    """configs.compose, each set of overrides once."""
    return configs.compose(list(overrides))


def settings_of(overrides: Point) -> dict[str, Any]:
    """configs.settings, a copy; each set of overrides once."""
    return dict(_settings(overrides))


@lru_cache(maxsize=1024)
def _settings(overrides: Point) -> Mapping[str, Any]:
    return configs.settings(overrides)


def _content(name: str, folder: Path) -> dict[str, Any]:
    if name not in (found := names(folder)):
        raise ClaimError(f"there is no claim {name!r}; {_nearest(name, found)}")
    path = folder / f"{name}.yaml"
    try:
        content = read_yaml(path, may_be_link=True)
    except ReadingError as error:
        raise ClaimError(str(error)) from None
    if content is None:
        raise ClaimError(f"{path} does not exist")
    for field in ("scales", "arms"):
        _check_mappings(content.get(field), field, str(path))
    for scale, fields in (content.get("scales") or {}).items():
        _check_mappings((fields or {}).get("arms"), f"scales.{scale}.arms", str(path))
    return content


def _check_mappings(found: Any, field: str, where: str) -> None:
    """Raises: ClaimError: unless it is missing, or maps texts to mappings or nothing."""
    if found is None:
        return
    if not isinstance(found, dict):
        raise ClaimError(f"{where}: {field} must be a mapping, not {shown(found)}")
    for name, content in found.items():
        if not isinstance(name, str) or (content is not None and not isinstance(content, dict)):
            raise ClaimError(f"{where}: {field}: {shown(name)} must be a name with a mapping, not {shown(content)}")


def _check_trust(claim: Claim, where: str) -> None:
    """A file may choose among our classes and torch.optim's; any other, and a look into the environment, the user must.

    Raises: ClaimError.
    """
    points = [claim.common, *(point for arm in claim.arms for point in (arm.overrides, arm.paper, *arm.grid))]
    for override in dict.fromkeys(override for point in points for override in point):
        if "${" in override:
            raise ClaimError(f"{where}: {shown(override)}: ${{...}} is not looked up for a file; write the value")
        each = grammar.given(override)
        if TARGET in override and each.raw is not None:
            content = {each.key.rpartition(".")[2]: grammar.value(each.key, each.raw)}
            for target in _targets(content):
                if not is_trusted(str(target)):
                    raise ClaimError(
                        f"{where}: {shown(override)}: a file may name classes of optim, data, trainer and torch.optim "
                        "alone; give others on the command line"
                    )


def _targets(content: Any) -> list[Any]:
    """All values of _target_."""
    if isinstance(content, Mapping):
        own = [each for key, each in content.items() if key == TARGET]
        return own + [target for each in content.values() for target in _targets(each)]
    return [target for each in content for target in _targets(each)] if isinstance(content, list) else []


def _merged(content: Mapping[str, Any], scale: Mapping[str, Any]) -> dict[str, Any]:
    """The file's fields with a scale's over them."""
    arms = content.get("arms") or {}
    changed = scale.get("arms") or {}
    if odd := [arm for arm in changed if arm not in arms]:
        raise ClaimError(f"a scale changes the arm {odd[0]!r}, which `arms` does not have; {_nearest(odd[0], [*arms])}")
    merged_arms = {name: {**(arm or {}), **(changed.get(name) or {})} for name, arm in arms.items()}
    return {**content, **scale, **({"arms": merged_arms} if "arms" in content else {})}


def _check_fields(fields: Mapping[str, Any], where: str) -> None:
    kind = fields.get("kind")
    if kind is None:
        raise ClaimError(f"{where}: field 'kind' is missing; one of {', '.join(KINDS)}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ClaimError(f"{where}: kind={kind!r} does not exist; {_nearest(str(kind), list(KINDS))}")
    known = FIELDS | KINDS[kind]
    for field, (type_, is_required) in known.items():
        if is_required and fields.get(field) is None:
            raise ClaimError(f"{where}: field {field!r} ({type_}) is missing")
        if fields.get(field) is not None and not _is(fields[field], type_):
            raise ClaimError(f"{where}: field {field!r} must be {type_}, not {shown(fields[field])}")
    for field in fields:
        if field not in known:
            raise ClaimError(f"{where}: a claim of kind {kind} has no field {field!r}; {_nearest(field, list(known))}")


def _is(value: Any, type_: str) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    checks = {
        TEXT: isinstance(value, str),
        WORDS: isinstance(value, list) and all(isinstance(each, str) for each in value),
        NUMBER: is_number,
        COUNT: is_number and isinstance(value, int) and value >= 0,
        TABLE: isinstance(value, dict),
        FLAG: isinstance(value, bool),
        ROWS: isinstance(value, list) and bool(value),
        SIZE: is_number and isinstance(value, int) and value >= 1,
        SHARE: is_number and 0 < value <= 1,
    }
    return checks[type_]


def _claim(name: str, scale: str, fields: Mapping[str, Any], overrides: Point, where: str) -> Claim:
    try:
        source: Source = made(Source, fields["source"], where, "source")
    except ResultsError as error:
        raise ClaimError(f"{error}; source has paper, url, sentence, setting and unverified, texts") from None
    rest = {key: value for key, value in fields.items() if key not in ("title", "kind", "source", "contrary", "rule")}
    return Claim(
        id=name,
        scale=scale,
        title=fields["title"],
        kind=fields["kind"],
        source=source,
        contrary=list(fields["contrary"]),
        rule=" ".join(fields["rule"].split()),
        arms=tuple(_arm(arm_name, arm, where) for arm_name, arm in fields["arms"].items()),
        common=(*fields["overrides"], *overrides),
        fields=rest,
    )


def _arm(name: str, content: Mapping[str, Any], where: str) -> ArmSpec:
    place = f"{where}: arm {name}"
    if odd := [key for key in content if key not in ARM]:
        raise ClaimError(f"{place} has no field {odd[0]!r}; {_nearest(odd[0], sorted(ARM))}")
    for field in ("label", "role", "overrides"):
        if content.get(field) is None:
            raise ClaimError(f"{place}: field {field!r} is missing")
    if not _is(content["label"], TEXT) or not isinstance(content.get("grid") or [], list):
        raise ClaimError(f"{place}: label must be a text, and grid a list of points")
    if content["role"] not in ROLES:
        raise ClaimError(f"{place}: role={content['role']!r} must be one of {', '.join(ROLES)}")
    points = [content["overrides"], content.get("paper") or [], *(content.get("grid") or [])]
    for point in points:
        if not _is(point, WORDS):
            raise ClaimError(f"{place}: {point!r} must be a list of overrides such as [optim.lr=1e-3]")
    overrides, paper, *grid = (tuple(point) for point in points)
    return ArmSpec(name, content["label"], content["role"], overrides, paper, tuple(grid))


def _with_seeds(claim: Claim, n_seeds: int) -> Claim:
    if "seeds" not in claim.fields:
        raise ClaimError(f"claim {claim.id} is of kind {claim.kind} and trains nothing: leave seeds= out")
    if n_seeds < 1:
        raise ClaimError(f"seeds={n_seeds} must be >= 1")
    more = (seed for seed in range(max(claim.seeds) + 1, 10**9) if seed != claim.fields["tuning_seed"])
    seeds = [*claim.seeds, *(next(more) for _ in range(n_seeds))][:n_seeds]
    return Claim(**{**vars(claim), "fields": {**claim.fields, "seeds": seeds}})


def _check_kind(claim: Claim, where: str) -> None:
    """What the fields of a kind must be beyond their type."""
    for row in claim.fields.get("statements") or ():
        _check_row(row, {"statement": TEXT, "finding": TEXT, "why": TEXT}, "statements", claim, where)
    if claim.kind != "toy" and not any(arm.role == "baseline" for arm in claim.arms):
        raise ClaimError(f"{where}: no arm has role baseline")
    if claim.kind in ("speed_up", "sweep"):
        _check_training(claim, where)
    if claim.kind == "speed_up":
        _check_speed_up(claim, where)
    elif claim.kind == "sweep":
        _check_sweep(claim, where)
    elif claim.kind == "overhead":
        _check_expect(claim, where)
        _check_row(claim.fields["settings"], {"rounds": SIZE, "steps": SIZE, "sizes": WORDS}, "settings", claim, where)


def _check_training(claim: Claim, where: str) -> None:
    fields = claim.fields
    if ("warmup_steps" in fields) == ("warmup_fraction" in fields):
        raise ClaimError(f"{where}: give one of warmup_steps and warmup_fraction")
    if not all(_is(seed, COUNT) for seed in claim.seeds) or len(set(claim.seeds)) < len(claim.seeds):
        raise ClaimError(f"{where}: seeds={claim.seeds} must be different counts")
    if fields["tuning_seed"] in claim.seeds:
        raise ClaimError(
            f"{where}: tuning_seed={fields['tuning_seed']} is among the seeds of the comparison, {claim.seeds}; "
            "what tuning has seen must not be compared"
        )


def _check_speed_up(claim: Claim, where: str) -> None:
    fields = claim.fields
    if not fields["protocols"]:
        raise ClaimError(f"{where}: field 'protocols' must name one or more of {', '.join(PROTOCOLS)}")
    for protocol in fields["protocols"]:
        if protocol not in PROTOCOLS:
            raise ClaimError(f"{where}: protocol {protocol!r} does not exist; {_nearest(protocol, list(PROTOCOLS))}")
        _check_fractions(fields["fractions"].get(protocol), f"fractions.{protocol}", where)
    if "paper" in fields["protocols"] and (without := [arm.name for arm in claim.arms if not arm.paper]):
        raise ClaimError(f"{where}: arm {without[0]}: field 'paper' is missing: the paper's hyperparameters")
    for row in fields["comparisons"]:
        _check_row(row, {"candidate": TEXT, "baseline": TEXT, "claimed": TABLE}, "comparisons", claim, where)
        if row.get("fractions") is not None and not _is(row["fractions"], TABLE):
            raise ClaimError(f"{where}: comparisons: fractions must be a mapping, not {shown(row['fractions'])}")
        for protocol, fractions in (row.get("fractions") or {}).items():
            _check_fractions(fractions, f"comparisons: fractions.{protocol}", where)
        for key, value in row["claimed"].items():
            if key not in NO_EFFECT:
                raise ClaimError(
                    f"{where}: comparisons: nothing can be claimed of {key!r}; {_nearest(key, [*NO_EFFECT])}"
                )
            if not _is(value, NUMBER) or value == NO_EFFECT[key]:
                raise ClaimError(f"{where}: comparisons: claimed.{key}={value!r} must be a number, and not no effect")
    if "tuned" in fields["protocols"]:
        sizes = {arm.name: len(arm.grid) for arm in claim.arms}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ClaimError(f"{where}: every arm needs a grid of the same size, for equal tuning; they have {sizes}")
        for row in fields["halving"]:
            _check_row(row, {"fraction": SHARE, "keep": SIZE}, "halving", claim, where)
        if fields["halving"][-1]["keep"] != 1:
            raise ClaimError(f"{where}: the last round of halving must keep 1")


def _check_fractions(fractions: Any, field: str, where: str) -> None:
    if not _is(fractions, ROWS) or not all(_is(each, SHARE) for each in fractions):
        raise ClaimError(f"{where}: {field} must list the candidate's budgets, each in (0, 1]")


def _check_sweep(claim: Claim, where: str) -> None:
    if claim.fields["chosen"] not in CHOSEN:
        raise ClaimError(f"{where}: chosen={claim.fields['chosen']!r} must be one of {', '.join(CHOSEN)}")
    if not all(_is(each, NUMBER) and each > 0 for each in claim.fields.get("near") or ()):
        raise ClaimError(f"{where}: near={shown(claim.fields['near'])} must list numbers above 0")
    _check_expect(claim, where)
    for arm in claim.arms:
        if not arm.grid:
            raise ClaimError(f"{where}: arm {arm.name}: field 'grid' is missing: the points of the sweep")
        for point in arm.grid:
            try:
                float(point[0].partition("=")[2])
            except (ValueError, IndexError):
                raise ClaimError(
                    f"{where}: arm {arm.name}: the first override of the point {list(point)} must be key=number, "
                    "its place on the axis"
                ) from None


def _check_expect(claim: Claim, where: str) -> None:
    for row in claim.fields["expect"]:
        types = {"measure": TEXT, "arm": TEXT, "claimed": NUMBER, "no_effect": NUMBER}
        _check_row(row, types, "expect", claim, where)
        if row["measure"] not in (known := EXPECTED[claim.kind]):
            raise ClaimError(f"{where}: expect: measure={row['measure']!r}; {_nearest(str(row['measure']), known)}")
        numbers = (row["claimed"], row["no_effect"])
        if not all(_is(each, NUMBER) for each in numbers) or numbers[0] == numbers[1]:
            raise ClaimError(f"{where}: expect: {row}: claimed and no_effect must be two different numbers")


def _check_row(row: Any, types: Mapping[str, str], field: str, claim: Claim, where: str) -> None:
    """Raises: ClaimError: unless it is a mapping that has the keys, each with a value of its type."""
    if not isinstance(row, dict) or (missing := [key for key in types if key not in row]):
        what = f"lacks {missing[0]!r}" if isinstance(row, dict) else "must be a mapping"
        raise ClaimError(f"{where}: {field}: {shown(row)} {what}")
    for key, type_ in types.items():
        if not _is(row[key], type_):
            raise ClaimError(f"{where}: {field}: {key}={shown(row[key])} must be {type_}")
    arms = [arm.name for arm in claim.arms]
    for key in ("candidate", "baseline", "arm", "against"):
        if key in row and row[key] not in arms:
            raise ClaimError(f"{where}: {field}: there is no arm {row[key]!r}; {_nearest(str(row[key]), arms)}")


def _check_arms_compose(claim: Claim, where: str) -> None:
    """Composes every point of every arm, and compares what the arms see."""
    allowed = tuple(claim.fields.get("differs") or ())
    reference: dict[str, Any] | None = None
    for arm in claim.arms:
        for point in dict.fromkeys([arm.paper, *arm.grid, ()]):
            config = composed((*claim.common, *arm.overrides, *point))
            shared = {key: value for key, value in configs.identity(config).items() if _below(key, SHARED)}
            reference = shared if reference is None else reference
            for key in sorted(shared.keys() | reference.keys()):
                if shared.get(key) != reference.get(key) and not _below(key, allowed):
                    raise ClaimError(
                        f"{where}: arm {arm.name} has {key}={shared.get(key)}, arm {claim.arms[0].name} has "
                        f"{reference.get(key)}; arms must agree in it, or say so: differs: [{key}]"
                    )


def _below(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _nearest(key: str, known: Sequence[str]) -> str:
    found = get_close_matches(key, known, 1)
    near = f"the nearest one is {found[0]!r} " if found else ""
    return f"{near}(all: {', '.join(known)})"

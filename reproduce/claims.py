"""configs/claim/<id>.yaml to a checked Claim at a scale.

A file holds what the claim says (title, source, contrary, evidence, rule), how it is tested (kind, arms, and the
fields of its kind) and, under `scales`, what differs from scale to scale: the keys of a scale replace those of the
file, and those of an arm there replace the arm's. What all claims that train have in common at a scale (model, data,
length, seeds) stands in configs/scale/<scale>.yaml, and what they have in common of an arm in configs/arm/<arm>.yaml;
the claim's own keys come after them, and `overrides` are added. Nothing runs before everything here has been checked,
every arm composed included. All mistakes of a file are said at once, a line each; those of its form, such as a scale
that is no mapping, before all others.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import configs
from configs import ConfigError, RunConfig
from configs import overrides as grammar
from configs.plug_ins import TARGET, is_trusted
from configs.runs import belongs
from files.errors import ReadingError, shown
from files.reading import read_yaml
from report.results import TAGS
from reproduce import arms
from reproduce.arms import ArmFields, ArmSpec, CarriedFields, Point
from reproduce.claim import Claim, Fields
from reproduce.composed import composed
from reproduce.fields import nearest, typed_so_far
from reproduce.kind import Kind, named
from reproduce.kind import names as kinds
from reproduce.mistakes import ClaimError, Mistakes, incomplete
from reproduce.training import TrainingFields, with_seeds

FOLDER = configs.FOLDER / "claim"
# Keys in which the arms of a claim must agree, unless `differs` names them: what they see, and how much of it.
SHARED = ("data", "global_batch", "model.block_size", "eval_sequences")
# Keys that every run is given, whatever its arm; of the schedule, warm-up alone is an arm's.
OWN = ("seed", "max_steps", "eval_every", "save_every", "save_at", "start_from", "start", "resume", "run_dir")


def names(folder: Path = FOLDER) -> list[str]:
    """The claims there are, less those whose names begin with _, such as the template."""
    return sorted(path.stem for path in folder.glob("[!_]*.yaml"))


def scales(name: str, folder: Path = FOLDER) -> list[str]:
    """The scales that a claim has, smallest first."""
    return list(_content(name, folder).get("scales") or {})


def title(name: str, folder: Path = FOLDER) -> str:
    """Returns the title of a claim."""
    return str(_content(name, folder).get("title"))


def load(
    name: str, scale: str, overrides: Sequence[str] = (), *, folder: Path = FOLDER, n_seeds: int | None = None
) -> Claim[Any]:
    """The claim of that name at a scale, checked; overrides are added to those of every run.

    n_seeds: compare with so many seeds instead of the file's; the file's come first.

    Raises: ClaimError: if there is no such claim or scale, the file is wrong, or an arm does not compose.
    """
    content = _content(name, folder)
    claim_scales = content.pop("scales", None) or {}
    mistakes = Mistakes()
    if scale not in claim_scales:
        mistakes.lines.append(f"claim {name} has no scale {scale!r}; {nearest(scale, list(claim_scales))}")
        if (meant := _misspelt(scale, claim_scales, folder)) is None:
            mistakes.raise_all()
        claim_scales[scale] = claim_scales.get(meant)
    where = f"{folder / name}.yaml, scale {scale}"
    common = _scale(scale, folder) if _trains(content) else {}
    merged = _merged(common, content, claim_scales[scale] or {}, where, mistakes)
    claim = _claim(name, scale, merged, where, folder.parent / "arm", mistakes)
    n_before = len(mistakes.lines)
    with mistakes.collected():
        _check_trust(claim, where, mistakes)
    is_trusted = len(mistakes.lines) == n_before
    _check(claim, where, mistakes)
    with mistakes.collected():
        claim = _with_overrides(claim, overrides)
    if n_seeds is not None:
        with mistakes.collected():
            claim = with_seeds(claim, n_seeds)
    _check_own_keys(claim, where, mistakes)
    if is_trusted:
        with mistakes.collected():
            _check_arms_compose(claim, where, mistakes)
    mistakes.raise_all()
    return claim


def _content(name: str, folder: Path) -> dict[str, Any]:
    if name not in {path.stem for path in folder.glob("*.yaml")}:
        raise ClaimError(f"there is no claim {name!r}; {nearest(name, names(folder))}")
    path = folder / f"{name}.yaml"
    try:
        content = read_yaml(path, may_be_link=True)
    except ReadingError as error:
        raise ClaimError(str(error)) from None
    if content is None:
        raise ClaimError(f"{path} does not exist")
    mistakes = Mistakes()
    for field in ("scales", "arms"):
        mistakes.lines += _no_mappings(content.get(field), field, str(path))
    mistakes.raise_all()
    for scale, fields in (content.get("scales") or {}).items():
        mistakes.lines += _no_mappings((fields or {}).get("arms"), f"scales.{scale}.arms", str(path))
    mistakes.raise_all()
    return content


def _no_mappings(found: Any, field: str, where: str) -> list[str]:
    """What is wrong with a field, unless it is missing, or maps texts to mappings or nothing."""
    if found is None:
        return []
    if not isinstance(found, dict):
        return [f"{where}: {field} must be a mapping, not {shown(found)}"]
    return [
        f"{where}: {field}: {shown(name)} must be a name with a mapping, not {shown(content)}"
        for name, content in found.items()
        if not isinstance(name, str) or (content is not None and not isinstance(content, dict))
    ]


def _trains(content: Mapping[str, Any]) -> bool:
    """Whether claims of its kind train; of a kind that does not exist, they do not."""
    wanted = str(content.get("kind"))
    return wanted in kinds() and issubclass(named(wanted).Fields, TrainingFields)


def _scale(scale: str, folder: Path) -> dict[str, Any]:
    """What all claims that train have in common at a scale; nothing if it has no file."""
    try:
        return read_yaml(folder.parent / "scale" / f"{scale}.yaml", may_be_link=True) or {}
    except ReadingError as error:
        raise ClaimError(str(error)) from None


def _misspelt(scale: str, known: Iterable[str], folder: Path) -> str | None:
    """The name among those of a claim's scales that is no scale and was meant to be this one, if there is one."""
    scales_there = {path.stem for path in (folder.parent / "scale").glob("*.yaml")}
    unknown = [each for each in known if each not in scales_there]
    return next(iter(get_close_matches(scale, unknown, 1)), None) if scale in scales_there else None


def _merged(
    common: Mapping[str, Any], content: Mapping[str, Any], scale: Mapping[str, Any], where: str, mistakes: Mistakes
) -> dict[str, Any]:
    """The fields of the scale's file, the claim's over them, and the claim's for the scale over those."""
    arms_there = content.get("arms") or {}
    changed = scale.get("arms") or {}
    for odd in (arm for arm in changed if arm not in arms_there):
        known = nearest(odd, [*arms_there])
        mistakes.lines.append(f"{where}: a scale changes the arm {odd!r}, which `arms` does not have; {known}")
    merged_arms = {name: {**(arm or {}), **(changed.get(name) or {})} for name, arm in arms_there.items()}
    found = {**common, **content, **scale, **({"arms": merged_arms} if "arms" in content else {})}
    lists = [each["overrides"] for each in (common, content, scale) if "overrides" in each]
    if all(isinstance(each, list) for each in lists) and lists:
        found["overrides"] = [override for each in lists for override in each]
    return found


def _claim(
    name: str, scale: str, content: dict[str, Any], where: str, arm_folder: Path, mistakes: Mistakes
) -> Claim[Any]:
    """The claim; if there are mistakes, which are added, without what is wrong."""
    known: dict[str, Any] = {"id": name, "scale": scale}
    with mistakes.collected(f"{where}: "):
        known["kind"] = kind = _kind(content)
    if "kind" in known:
        fields = typed_so_far(kind.Fields, content, where, mistakes, f"a claim of kind {kind.name}")
    else:
        of_all_kinds = {each.name for each in dataclasses.fields(Fields)}
        fields = typed_so_far(Fields, {k: v for k, v in content.items() if k in of_all_kinds}, where, mistakes)
    known["fields"] = fields
    with mistakes.collected():
        fields.rule = " ".join(fields.rule.split())
        if not fields.rule:
            raise ClaimError(f"{where}: field 'rule' is empty; say how the verdict follows from the numbers")
    with mistakes.collected():
        _check_evidence(fields, where, mistakes)
    more: tuple[arms.Axis, ...] = ()
    carried: CarriedFields | None = None
    with mistakes.collected():
        if isinstance(fields, TrainingFields):
            more, carried = (fields.warm_up,), fields.rates_from
    with mistakes.collected():
        known["arms"] = tuple(
            _arm(arm, given or {}, scale, where, arm_folder, more, carried, mistakes)
            for arm, given in fields.arms.items()
        )
    with mistakes.collected():
        known["common"] = tuple(fields.overrides)
    return incomplete(Claim, known) if mistakes.lines else Claim(**known)


def _kind(content: Mapping[str, Any]) -> Kind[Any]:
    if content.get("kind") is None:
        raise ClaimError(f"field 'kind' is missing; one of {', '.join(kinds())}")
    return named(str(content["kind"]))


def _arm(
    name: str,
    given: Mapping[str, Any],
    scale: str,
    where: str,
    folder: Path,
    more: tuple[arms.Axis, ...],
    carried: CarriedFields | None,
    mistakes: Mistakes,
) -> ArmSpec:
    """The arm; if there are mistakes, which are added, of its fields the name alone."""
    with mistakes.collected(f"{where}: "):
        merged = arms.merged(name, given, scale, folder, carried)
        fields = typed_so_far(ArmFields, merged, f"{where}: arm {name}", mistakes)
        return arms.spec(name, fields, more)
    return incomplete(ArmSpec, {"name": name})


def _check_evidence(fields: Fields, where: str, mistakes: Mistakes) -> None:
    """Adds evidence that has no source, or is about no arm of the claim."""
    for n, each in enumerate(fields.evidence):
        with mistakes.collected():
            if not each.source.strip():
                raise ClaimError(f"{where}: evidence[{n}] ({each.label}) has no source; say where it stands")
        with mistakes.collected():
            if each.tag not in TAGS:
                known = ", ".join(TAGS)
                raise ClaimError(f"{where}: evidence[{n}] ({each.label}): tag={each.tag!r} must be one of {known}")
        with mistakes.collected():
            if each.arm not in fields.arms:
                known = nearest(each.arm, [*fields.arms])
                raise ClaimError(f"{where}: evidence[{n}] ({each.label}): there is no arm {each.arm!r}; {known}")


def _check_trust(claim: Claim[Any], where: str, mistakes: Mistakes) -> None:
    """A file may choose among our classes and torch.optim's; any other, and a look into the environment, the user must.

    Adds the overrides that do else.
    """
    found: dict[str, None] = {}
    with mistakes.collected():
        found |= dict.fromkeys(claim.common)
    for arm in claim.arms:
        with mistakes.collected():
            found |= dict.fromkeys(override for point in _points(arm, arm.overrides) for override in point)
    for override in found:
        with mistakes.collected(f"{where}: "):
            _check_override(override)


def _check_own_keys(claim: Claim[Any], where: str, mistakes: Mistakes) -> None:
    """Adds overrides of arms that reproductions set themselves, so that arms would see or do other things."""
    with mistakes.collected():
        for arm in claim.arms:
            for override in dict.fromkeys(each for point in _points(arm, arm.overrides) for each in point):
                key = grammar.given(override).key
                if key in OWN or (belongs(key, "schedule") and key != "schedule.warmup_steps"):
                    mistakes.lines.append(
                        f"{where}: arm {arm.name}: {shown(override)}: {key} is the same for all arms, and no part of "
                        "any; leave it out"
                    )


def _check_override(override: str) -> None:
    """Raises: ClaimError: if a file may not have it. ConfigError: if it is none."""
    if "${" in override:
        raise ClaimError(f"{shown(override)}: ${{...}} is not looked up for a file; write the value")
    each = grammar.given(override)
    if TARGET in override and each.raw is not None:
        content = {each.key.rpartition(".")[2]: grammar.value(each.key, each.raw)}
        if not all(is_trusted(str(target)) for target in _targets(content)):
            raise ClaimError(
                f"{shown(override)}: a file may name classes of optim, data, trainer and torch.optim alone; give "
                "others on the command line"
            )


def _targets(content: Any) -> list[Any]:
    """All values of _target_."""
    if isinstance(content, Mapping):
        own = [each for key, each in content.items() if key == TARGET]
        return own + [target for each in content.values() for target in _targets(each)]
    return [target for each in content for target in _targets(each)] if isinstance(content, list) else []


def _check(claim: Claim[Any], where: str, mistakes: Mistakes) -> None:
    """Adds what is wrong with the fields beyond their types."""
    with mistakes.collected():
        roles = [(given or {}).get("role") for given in claim.fields.arms.values()]  # also of arms that are incomplete
        if claim.kind.needs_baseline and "baseline" not in roles:
            raise ClaimError(f"{where}: no arm has role baseline")
    with mistakes.collected(f"{where}: "):
        claim.kind.check(claim)


def _with_overrides(claim: Claim[Any], overrides: Sequence[str]) -> Claim[Any]:
    """The claim with the user's overrides; who chooses a group's option, leaves the scale's settings of it."""
    chosen = [key for key in (grammar.given(each).key for each in overrides) if key in configs.GROUPS]
    kept = [each for each in claim.common if not _is_among(grammar.given(each).key.replace("/", "."), chosen)]
    return dataclasses.replace(claim, common=(*kept, *overrides))


def _check_arms_compose(claim: Claim[Any], where: str, mistakes: Mistakes) -> None:
    """Composes every point of every arm, and compares what the arms see; adds what is wrong."""
    points: list[tuple[str, Point]] = []
    for arm in claim.arms:
        with mistakes.collected():
            points += [(arm.name, (*claim.common, *arm.overrides, *point)) for point in _points(arm, ())]
    found: list[tuple[str, RunConfig]] = []
    failed: dict[str, list[str]] = {}  # what is wrong, and in which arms
    for name, overrides in points:
        try:
            found.append((name, composed(overrides)))
        except ConfigError as error:
            for line in _one_by_one(overrides) or error.args:
                failed.setdefault(line, []).append(name)
    for line, names_ in failed.items():
        is_of_all = {*names_} == {arm.name for arm in claim.arms}  # and may be the user's
        mistakes.lines.append(line if is_of_all else f"{where}: arm {', '.join(dict.fromkeys(names_))}: {line}")
    allowed = claim.fields.differs if isinstance(claim.fields, TrainingFields) else []
    mistakes.lines += [f"{where}: {each}" for each in _disagreements(found, allowed)]


def _one_by_one(overrides: Point) -> list[str]:
    """What is wrong with each override by itself, beside the choices of groups that can be made."""
    chosen, lines = list[str](), list[str]()
    for override in sorted(overrides, key=lambda each: grammar.given(each).key not in configs.GROUPS):
        try:
            composed((*chosen, override))
        except ConfigError as error:
            lines += error.args
        else:
            chosen += [override] if grammar.given(override).key in configs.GROUPS else []
    return lines


def _disagreements(found: Sequence[tuple[str, RunConfig]], allowed: Sequence[str]) -> Iterator[str]:
    """In what the arms do not agree with the first. found: the names of arms, with the configurations of each."""
    reference: dict[str, Any] | None = None
    for name, config in found:
        shared = {key: value for key, value in configs.identity(config).items() if _is_among(key, SHARED)}
        reference = shared if reference is None else reference
        for key in sorted(shared.keys() | reference.keys()):
            if shared.get(key) != reference.get(key) and not _is_among(key, allowed):
                yield (
                    f"arm {name} has {key}={shared.get(key)}, arm {found[0][0]} has {reference.get(key)}; arms must "
                    f"agree in it, or say so: differs: [{key}]"
                )


def _points(arm: ArmSpec, also: Point) -> list[Point]:
    """All that the arm states of its hyperparameters."""
    return list(dict.fromkeys([also, arm.paper, arm.usual, arm.fixed, arm.point(arm.start)]))


def _is_among(key: str, parents: Sequence[str]) -> bool:
    return any(belongs(key, parent) for parent in parents)

"""configs/claim/<id>.yaml to a checked Claim at a scale.

A file holds what the claim says (title, source, contrary, evidence, rule), how it is tested (kind, arms, and the
fields of its kind) and, under `scales`, what differs from scale to scale: the keys of a scale replace those of the
file, and those of an arm there replace the arm's. What all claims that train have in common at a scale (model, data,
length, seeds) stands in configs/scale/<scale>.yaml, and what they have in common of an arm in configs/arm/<arm>.yaml;
the claim's own keys come after them, and `overrides` are added. Nothing runs before everything here has been checked,
every arm composed included.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import configs
from configs import overrides as grammar
from configs.plug_ins import TARGET, is_trusted
from configs.runs import belongs
from files.errors import ReadingError, shown
from files.reading import read_yaml
from reproduce import arms
from reproduce.arms import ArmFields, ArmSpec, CarriedFields, Point
from reproduce.claim import Claim, Fields
from reproduce.composed import composed
from reproduce.fields import ClaimError, nearest, typed
from reproduce.kind import named
from reproduce.kind import names as kinds
from reproduce.training import TrainingFields, with_seeds

FOLDER = configs.FOLDER / "claim"
# Keys in which the arms of a claim must agree, unless `differs` names them: what they see, and how much of it.
SHARED = ("data", "global_batch", "model.block_size")


def names(folder: Path = FOLDER) -> list[str]:
    """The claims there are."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


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

    Raises: ClaimError: if there is no such claim or scale, or the file is wrong.
    ConfigError: if an arm does not compose.
    """
    content = _content(name, folder)
    claim_scales = content.pop("scales", None) or {}
    if scale not in claim_scales:
        raise ClaimError(f"claim {name} has no scale {scale!r}; {nearest(scale, list(claim_scales))}")
    where = f"{folder / name}.yaml, scale {scale}"
    common = _scale(scale, folder) if _trains(content) else {}
    merged = _merged(common, content, claim_scales[scale] or {})
    claim = _claim(name, scale, merged, where, folder.parent / "arm")
    _check_trust(claim, where)
    _check(claim, where)
    claim = _with_overrides(claim, overrides)
    if n_seeds is not None:
        claim = with_seeds(claim, n_seeds)
    _check_arms_compose(claim, where)
    return claim


def _content(name: str, folder: Path) -> dict[str, Any]:
    if name not in (found := names(folder)):
        raise ClaimError(f"there is no claim {name!r}; {nearest(name, found)}")
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


def _merged(common: Mapping[str, Any], content: Mapping[str, Any], scale: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the scale's file, the claim's over them, and the claim's for the scale over those."""
    arms_there = content.get("arms") or {}
    changed = scale.get("arms") or {}
    if odd := [arm for arm in changed if arm not in arms_there]:
        known = nearest(odd[0], [*arms_there])
        raise ClaimError(f"a scale changes the arm {odd[0]!r}, which `arms` does not have; {known}")
    merged_arms = {name: {**(arm or {}), **(changed.get(name) or {})} for name, arm in arms_there.items()}
    found = {**common, **content, **scale, **({"arms": merged_arms} if "arms" in content else {})}
    lists = [each["overrides"] for each in (common, content, scale) if "overrides" in each]
    if all(isinstance(each, list) for each in lists) and lists:
        found["overrides"] = [override for each in lists for override in each]
    return found


def _claim(name: str, scale: str, content: dict[str, Any], where: str, arm_folder: Path) -> Claim[Any]:
    wanted = content.get("kind")
    if wanted is None:
        raise ClaimError(f"{where}: field 'kind' is missing; one of {', '.join(kinds())}")
    try:
        kind = named(str(wanted))
    except ClaimError as error:
        raise ClaimError(f"{where}: {error}") from None
    fields: Fields = typed(kind.Fields, content, where, f"a claim of kind {kind.name}")
    fields.rule = " ".join(fields.rule.split())
    _check_evidence(fields, where)
    trains = isinstance(fields, TrainingFields)
    more, carried = ((fields.warm_up,), fields.rates_from) if trains else ((), None)  # type: ignore[attr-defined]
    specs = tuple(_arm(arm, given or {}, scale, where, arm_folder, more, carried) for arm, given in fields.arms.items())
    return Claim(id=name, scale=scale, kind=kind, arms=specs, common=tuple(fields.overrides), fields=fields)


def _arm(
    name: str,
    given: Mapping[str, Any],
    scale: str,
    where: str,
    folder: Path,
    more: tuple[arms.Axis, ...],
    carried: CarriedFields | None,
) -> ArmSpec:
    try:
        fields = typed(ArmFields, arms.merged(name, given, scale, folder, carried), f"{where}: arm {name}")
        return arms.spec(name, fields, more)
    except ClaimError as error:
        raise ClaimError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _check_evidence(fields: Fields, where: str) -> None:
    """Raises: ClaimError: if evidence has no source, or is about no arm of the claim."""
    for n, each in enumerate(fields.evidence):
        if not each.source.strip():
            raise ClaimError(f"{where}: evidence[{n}] ({each.label}) has no source; say where it stands")
        if each.arm not in fields.arms:
            known = nearest(each.arm, [*fields.arms])
            raise ClaimError(f"{where}: evidence[{n}] ({each.label}): there is no arm {each.arm!r}; {known}")


def _check_trust(claim: Claim[Any], where: str) -> None:
    """A file may choose among our classes and torch.optim's; any other, and a look into the environment, the user must.

    Raises: ClaimError.
    """
    points = [claim.common, *(point for arm in claim.arms for point in _points(arm, arm.overrides))]
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


def _check(claim: Claim[Any], where: str) -> None:
    """What the fields must be beyond their types."""
    if claim.kind.needs_baseline and not any(arm.role == "baseline" for arm in claim.arms):
        raise ClaimError(f"{where}: no arm has role baseline")
    try:
        claim.kind.check(claim)
    except ClaimError as error:
        raise ClaimError(f"{where}: {error}") from None


def _with_overrides(claim: Claim[Any], overrides: Sequence[str]) -> Claim[Any]:
    """The claim with the user's overrides; who chooses a group's option, leaves the scale's settings of it."""
    chosen = [key for key in (grammar.given(each).key for each in overrides) if key in configs.GROUPS]
    kept = [each for each in claim.common if not _is_among(grammar.given(each).key.replace("/", "."), chosen)]
    return Claim(**{**vars(claim), "common": (*kept, *overrides)})


def _check_arms_compose(claim: Claim[Any], where: str) -> None:
    """Composes every point of every arm, and compares what the arms see."""
    allowed = claim.fields.differs if isinstance(claim.fields, TrainingFields) else []
    reference: dict[str, Any] | None = None
    for arm in claim.arms:
        for point in _points(arm, ()):
            config = composed((*claim.common, *arm.overrides, *point))
            shared = {key: value for key, value in configs.identity(config).items() if _is_among(key, SHARED)}
            reference = shared if reference is None else reference
            for key in sorted(shared.keys() | reference.keys()):
                if shared.get(key) != reference.get(key) and not _is_among(key, allowed):
                    raise ClaimError(
                        f"{where}: arm {arm.name} has {key}={shared.get(key)}, arm {claim.arms[0].name} has "
                        f"{reference.get(key)}; arms must agree in it, or say so: differs: [{key}]"
                    )


def _points(arm: ArmSpec, also: Point) -> list[Point]:
    """All that the arm states of its hyperparameters."""
    return list(dict.fromkeys([also, arm.paper, arm.usual, arm.fixed, arm.point(arm.start)]))


def _is_among(key: str, parents: Sequence[str]) -> bool:
    return any(belongs(key, parent) for parent in parents)

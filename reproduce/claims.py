"""configs/claim/<id>.yaml to a checked Claim at a scale.

A file holds what the claim says (title, source, contrary, rule), how it is tested (kind, arms, and the fields of its
kind) and, under `scales`, what differs from scale to scale: the keys of a scale replace those of the file, and those of
an arm there replace the arm's. Nothing runs before everything here has been checked, every arm composed included.
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
from reproduce.claim import ArmFields, ArmSpec, Claim, Fields
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
    claim = _claim(name, scale, _merged(content, claim_scales[scale] or {}), where)
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


def _merged(content: Mapping[str, Any], scale: Mapping[str, Any]) -> dict[str, Any]:
    """The file's fields with a scale's over them."""
    arms = content.get("arms") or {}
    changed = scale.get("arms") or {}
    if odd := [arm for arm in changed if arm not in arms]:
        raise ClaimError(f"a scale changes the arm {odd[0]!r}, which `arms` does not have; {nearest(odd[0], [*arms])}")
    merged_arms = {name: {**(arm or {}), **(changed.get(name) or {})} for name, arm in arms.items()}
    return {**content, **scale, **({"arms": merged_arms} if "arms" in content else {})}


def _claim(name: str, scale: str, content: Mapping[str, Any], where: str) -> Claim[Any]:
    wanted = content.get("kind")
    if wanted is None:
        raise ClaimError(f"{where}: field 'kind' is missing; one of {', '.join(kinds())}")
    try:
        kind = named(str(wanted))
    except ClaimError as error:
        raise ClaimError(f"{where}: {error}") from None
    fields: Fields = typed(kind.Fields, content, where, f"a claim of kind {kind.name}")
    fields.rule = " ".join(fields.rule.split())
    arms = tuple(_arm(arm, typed(ArmFields, given, f"{where}: arm {arm}")) for arm, given in fields.arms.items())
    return Claim(id=name, scale=scale, kind=kind, arms=arms, common=tuple(fields.overrides), fields=fields)


def _arm(name: str, fields: ArmFields) -> ArmSpec:
    grid = tuple(map(tuple, fields.grid))
    return ArmSpec(name, fields.label, fields.role, tuple(fields.overrides), tuple(fields.paper), grid)


def _check_trust(claim: Claim[Any], where: str) -> None:
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


def _check(claim: Claim[Any], where: str) -> None:
    """What the fields must be beyond their types."""
    if claim.kind.needs_baseline and not any(arm.role == "baseline" for arm in claim.arms):
        raise ClaimError(f"{where}: no arm has role baseline")
    try:
        claim.kind.check(claim)
    except ClaimError as error:
        raise ClaimError(f"{where}: {error}") from None


def _with_overrides(claim: Claim[Any], overrides: Sequence[str]) -> Claim[Any]:
    return Claim(**{**vars(claim), "common": (*claim.common, *overrides)})


def _check_arms_compose(claim: Claim[Any], where: str) -> None:
    """Composes every point of every arm, and compares what the arms see."""
    allowed = claim.fields.differs if isinstance(claim.fields, TrainingFields) else []
    reference: dict[str, Any] | None = None
    for arm in claim.arms:
        for point in dict.fromkeys([arm.paper, *arm.grid, ()]):
            config = composed((*claim.common, *arm.overrides, *point))
            shared = {key: value for key, value in configs.identity(config).items() if _is_among(key, SHARED)}
            reference = shared if reference is None else reference
            for key in sorted(shared.keys() | reference.keys()):
                if shared.get(key) != reference.get(key) and not _is_among(key, allowed):
                    raise ClaimError(
                        f"{where}: arm {arm.name} has {key}={shared.get(key)}, arm {claim.arms[0].name} has "
                        f"{reference.get(key)}; arms must agree in it, or say so: differs: [{key}]"
                    )


def _is_among(key: str, parents: Sequence[str]) -> bool:
    return any(belongs(key, parent) for parent in parents)

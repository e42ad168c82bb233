"""Whether saved parameter groups are these groups, and what of them is taken over."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .groups import MOVING, NO_SETTINGS, ROLE, Group, plain


def check_form(owner: str, state_dict: Any) -> None:
    """Raises ValueError for what is no state_dict of an optimizer."""
    content = state_dict if isinstance(state_dict, Mapping) else {}
    state, found = content.get("state"), content.get("param_groups")
    has_state = isinstance(state, Mapping) and all(isinstance(each, Mapping) for each in state.values())
    has_groups = isinstance(found, list) and all(isinstance(each, Mapping) and _is_saved(each) for each in found)
    if not (has_state and has_groups):
        what = type(state_dict).__name__ if content is not state_dict else ", ".join(map(repr, content)) or "nothing"
        raise ValueError(
            f"{owner}: load_state_dict takes what state_dict() gave: state by parameter under 'state', and groups with "
            f"'params' under 'param_groups'; this has {what}"
        )


def _is_saved(group: Group) -> bool:
    """Whether it lists its parameters by number, and their names if it has any."""
    names = group.get("param_names", [])
    return (
        isinstance(group.get("params"), list | tuple)
        and isinstance(names, list | tuple)
        and all(isinstance(name, str) for name in names)
    )


def check_kinds(owner: str, group: Group, saved: Group) -> None:
    """Raises ValueError for a saved setting that is of another kind than the group's: no number where that has one."""
    for key, value in saved.items():
        if key in (*NO_SETTINGS, ROLE):
            continue
        ours, theirs = _kind(group.get(key)), _kind(value)
        if "nothing" not in (ours, theirs) and ours != theirs:
            raise ValueError(f"{owner}: the saved optimizer state has {key}={value!r:.80}, which should be {ours}")


def _kind(value: Any) -> str:
    """In words."""
    value = plain(value)
    if value is None:
        return "nothing"
    if isinstance(value, tuple):
        return f"({', '.join(map(_kind, value))})"
    for kind, words in ((bool, "true or false"), (int | float, "a number"), (str, "a text")):
        if isinstance(value, kind):
            return words
    return f"a {type(value).__name__}"


def check_same(owner: str, groups: Sequence[Group], saved: Sequence[Group], settings: Collection[str]) -> None:
    """Raises ValueError unless the saved groups are these groups, in this order.

    Groups are told apart by the names of their parameters, where both sides have them, and otherwise by their numbers
    of parameters, their roles, and their settings: the same ones in another order are other groups.
    """
    if len(groups) != len(saved):
        raise ValueError(
            f"{owner}: the saved optimizer state has {len(saved)} parameter groups, this one {len(groups)}"
        )
    for number, (ours, theirs) in enumerate(zip(groups, saved, strict=True)):
        names, saved_names = ours.get("param_names"), theirs.get("param_names")
        if names is not None and saved_names is not None:
            _check_names(owner, number, names, saved_names)
        elif len(ours["params"]) != len(theirs.get("params", ours["params"])):
            raise ValueError(
                f"{owner}: parameter group {number} has {len(theirs['params'])} parameters in the saved optimizer "
                f"state, here {len(ours['params'])}"
            )
        elif ours.get(ROLE) != theirs.get(ROLE):
            raise ValueError(
                f"{owner}: parameter group {number} has role {theirs.get(ROLE)} in the saved optimizer state, here "
                f"{ours.get(ROLE)}; give the groups in the saved order"
            )
    if not all("param_names" in group for group in (*groups, *saved)):
        _check_order(owner, groups, saved, settings)


def adopted(group: Group, saved: Group) -> dict[str, Any]:
    """The group with the saved values of its settings; what is a tensor in it stays one, on its device."""
    return dict(group) | {key: _like(group.get(key), value) for key, value in saved.items() if key not in NO_SETTINGS}


def _like(ours: Any, saved: Any) -> Any:
    if isinstance(ours, Tensor):
        return torch.as_tensor(saved, dtype=ours.dtype, device=ours.device).clone()
    return plain(saved)


def _check_names(owner: str, number: int, names: Sequence[str], saved: Sequence[str]) -> None:
    if list(names) == list(saved):
        return
    odd = [i for i, (a, b) in enumerate(zip(names, saved, strict=False)) if a != b] or [min(len(names), len(saved))]
    ours, theirs = (", ".join(each[odd[0] : odd[0] + 1]) or "nothing" for each in (names, saved))
    raise ValueError(
        f"{owner}: parameter {odd[0]} of group {number} is {theirs} in the saved optimizer state, here {ours}; give "
        "groups and parameters in the saved order"
    )


def _check_order(owner: str, groups: Sequence[Group], saved: Sequence[Group], settings: Collection[str]) -> None:
    ours, theirs = ([_settings(group, settings) for group in each] for each in (groups, saved))
    if ours != theirs and sorted(ours) == sorted(theirs):
        number = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise ValueError(
            f"{owner}: parameter group {number} of the saved optimizer state has the settings of group "
            f"{ours.index(theirs[number])} here; give the groups in the saved order"
        )


def _settings(group: Group, settings: Collection[str]) -> str:
    """What two groups with the same settings have in common."""
    return repr([plain(group.get(key)) for key in settings if key not in MOVING])

"""Parameter groups: what one may hold, its settings as plain numbers, and whether saved groups are the same ones."""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor

Group = Mapping[str, Any]

NO_SETTINGS = ("params", "param_names")
ROLE = "role"  # build.py's, for diagnostics by role
# What torch's schedulers and SWALR keep in a group.
SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr")
MOVING = ("lr", *SCHEDULERS)  # other numbers in every step, so they do not tell groups apart


def plain(value: Any) -> Any:
    """A 0-dim tensor or a number of NumPy's as Python's number, also in tuples; a list as a tuple; others as they are.

    A tensor on another device than the CPU makes the host wait for it.
    """
    if isinstance(value, tuple | list):
        return tuple(plain(each) for each in value)
    return value.item() if getattr(value, "shape", None) == () else value


def without_numpy(value: Any) -> Any:
    """Returns plain(value), but keeps tensors, which schedulers fill; rows of numbers become tuples."""
    if isinstance(value, tuple | list) or getattr(value, "ndim", 0) == 1:
        return tuple(without_numpy(each) for each in value)
    return value if isinstance(value, Tensor) else plain(value)


def duplicate(group: Group, number: int) -> str:
    """Which parameter is in the group twice, in words; empty if none is."""
    first: dict[int, int] = {}
    for index, param in enumerate(group["params"]):
        if (before := first.setdefault(id(param), index)) != index:
            return f"{name_of(group, number, before)} and {name_of(group, number, index)} are the same parameter"
    return ""


def name_of(group: Group, number: int, index: int) -> str:
    """A parameter, for messages: by its name if the group has names, else by its place and shape."""
    if "param_names" in group:
        return str(group["param_names"][index])
    return f"parameter {index} of group {number}, of shape {tuple(group['params'][index].shape)},"


def not_dense(owner: str, group: Group, number: int, index: int) -> str:
    """What to say about a gradient that is sparse."""
    return (
        f"{owner}: the gradient of {name_of(group, number, index)} is {group['params'][index].grad.layout}; optimizers "
        "here take dense ones: use sparse=False in nn.Embedding, or torch.optim.SparseAdam"
    )


def check_keys(
    owner: str, group: Group, settings: Collection[str], also: Iterable[str], *, is_saved: bool = False
) -> None:
    """Raises ValueError for a key that is neither a setting, nor one of torch's own, nor among the others named.

    is_saved: whether that of a group to be loaded is meant.
    """
    known = [*settings, *NO_SETTINGS, ROLE, *SCHEDULERS, *also]
    for key in group:
        if key not in known:
            nearest = "".join(f"nearest: {name}; " for name in get_close_matches(str(key), settings, 1))
            of_another = f"the saved optimizer state, perhaps of another class, has {key!r}, but " if is_saved else ""
            raise ValueError(
                f"{owner}: {of_another}a parameter group has no setting {key!r}; {nearest}all: {', '.join(settings)}"
            )

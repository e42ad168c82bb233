"""A rule's parameter groups: its settings as torch.optim.Optimizer keeps them, checked."""

from collections import Counter
from collections.abc import Iterable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from . import groups
from .groups import Group
from .hyper import Hyper
from .rule import Rule

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class GroupedRule(torch.optim.Optimizer, Rule):
    """A torch.optim.Optimizer that knows the settings of a rule's groups.

    defaults: of a group's settings, and of counts that rules keep there. Raises: ValueError: if a hyperparameter lies
    outside its range, a group has a key that is no hyperparameter, or a parameter is not real.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        # What a group may have of its own; other defaults are counts.
        self.settings = [name for name in defaults if name in signature(type(self)).parameters]
        super().__init__(params, defaults)

    @classmethod
    def check_parameter(cls, name: str, param: Tensor) -> None:
        """Raises ValueError for a parameter that is not real; its imaginary part would be lost without a message."""
        if not param.is_floating_point():
            raise ValueError(
                f"{cls.__name__}: {name} is {param.dtype}; optimizers here take real floating-point parameters: "
                "optimize torch.view_as_real of a complex one"
            )

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as torch does; a group that is refused is not added.

        Raises: ValueError: as the constructor.
        """
        super().add_param_group(param_group)
        group, number = self.param_groups[-1], len(self.param_groups) - 1
        group |= {key: groups.without_numpy(value) for key, value in group.items() if key not in groups.NO_SETTINGS}
        try:
            groups.check_keys(type(self).__name__, group, self.settings, also=self.defaults)
            for index, param in enumerate(group["params"]):
                self.check_parameter(groups.name_of(group, number, index), param)
            if twice := groups.duplicate(group, number):
                raise ValueError(
                    f"{type(self).__name__}: {twice}, so it would be updated twice in a step; give it once"
                )
            self.check(self._hyper(group))
        except ValueError:
            self.param_groups.pop()
            raise

    def refresh_intervals(self) -> list[int]:
        """Steps between expensive refreshes, of every group that has them."""
        found = [self.refresh_interval(self._hyper(group)) for group in self.param_groups]
        return [interval for interval in found if interval is not None]

    def flops_of_all(self, steps: int) -> float:
        """FLOPs of the first `steps` steps of all parameters, see Rule.flops."""
        if type(self).flops is Rule.flops:
            return 0.0  # asked for in every step, of optimizers whose steps may be short
        found = 0.0
        for group in self.param_groups:
            hp, shapes = self._hyper(group), Counter(tuple(param.shape) for param in group["params"])
            found += sum(n * self.flops(shape, hp, steps) for shape, n in shapes.items())
        return found

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; the CPU if there is none."""
        return next((param.device for group in self.param_groups for param in group["params"]), torch.device("cpu"))

    def _hyper(self, group: Group, **more: Any) -> Hyper:
        """A group as attributes, its settings as numbers of Python's."""
        plain = {name: groups.plain(group[name]) for name in self.settings}
        return Hyper({name: value for name, value in group.items() if name not in groups.NO_SETTINGS} | plain | more)

"""Which rank computes and keeps what, of a rule's parameters."""

from typing import Any

import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from .grouped import GroupedRule, Params
from .groups import Group
from .owners import Owners
from .sharding import group_of, groups_of, is_sharded, total

COST_STEPS = 1000  # whose mean work decides which rank computes a parameter


class SharedRule(GroupedRule):
    """A GroupedRule whose parameters, or the work on them, ranks share: FSDP2's by themselves, DDP's by distribute."""

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self._owners: Owners | None = None
        self._group: dist.ProcessGroup | None = None  # of ranks with the same plain parameters and gradients
        super().__init__(params, defaults)

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if self._owners is not None:
            group = self.param_groups[-1]
            self._owners.add({param: self._cost(param, group) for param in group["params"]})

    def distribute(self, group: dist.ProcessGroup | None) -> None:
        """Shares the work among the ranks of a group that have the same plain parameters and gradients, as under DDP.

        Only for rules that are neither elementwise nor split rows: each parameter's owner alone keeps its state and
        computes. To be called before there is any state. FSDP2's parameters know their ranks themselves.
        """
        self._group = group

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks that keep parts of the state; where this rank keeps all, the tensor itself."""
        owners, sharded = self.owners(), self._first_sharded()
        ranks = None if sharded is None else group_of(sharded)
        return total(tensor, ranks if owners is None else owners.group)

    def total_of_all(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks that train these parameters, those with copies of the same state included."""
        sharded = self._first_sharded()
        for ranks in [self._group] if sharded is None else groups_of(sharded):
            tensor = total(tensor, ranks)
        return tensor

    def owners(self) -> Owners | None:
        """Who computes what, where ranks share parameters that the rule needs in full."""
        if self._owners is None and not (self.elementwise or self.splits_rows):
            sharded = self._first_sharded()
            ranks = self._group if sharded is None else group_of(sharded)
            if ranks is not None:
                self._owners = Owners(self.costs(), ranks)
        return self._owners

    def costs(self) -> dict[Tensor, float]:
        """The work of a step of each parameter, in operations, to the precision that sharing it needs."""
        return {param: self._cost(param, group) for group in self.param_groups for param in group["params"]}

    def _first_sharded(self) -> Tensor | None:
        """A parameter of which ranks hold different rows, if there are any."""
        return next((param for group in self.param_groups for param in group["params"] if is_sharded(param)), None)

    def _cost(self, param: Tensor, group: Group) -> float:
        return param.numel() + self.flops(tuple(param.shape), self._hyper(group), COST_STEPS) / COST_STEPS

    def _keeps_state_of(self, param: Tensor) -> bool:
        owners = self.owners()
        return owners is None or owners.owns(param)

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs import compose
from model import GPT
from optim.build import build
from optim.curvature import Curvature
from optim.ensemble import OptimizerSet
from optim.foreign import step_where
from optim.nodes import check

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.1}
LION_LIKE = {"_target_": "torch.optim.SGD", "lr": 0.1}


def gpt(**options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(vocab_size=20, n_layer=1, n_head=2, n_embd=8, block_size=6, **options)


def built(config: Mapping[str, Any], model: GPT) -> OptimizerSet:
    return build(config, dict(model.named_parameters()), model.roles(), seed=1, global_batch=4)


def decay_by_name(optimizer: OptimizerSet) -> dict[str, float]:
    groups = optimizer.param_groups
    return {optimizer.names[p]: group["weight_decay"] for group in groups for p in group["params"]}


def test_every_parameter_is_owned_once_and_decays_only_where_its_role_says() -> None:
    model = gpt(tied_head=False)
    optimizer = built({**ADAMW, "decay_roles": ["matrix", "head"]}, model)
    roles, decay = model.roles(), decay_by_name(optimizer)
    assert decay.keys() == roles.keys()
    assert all((decay[name] == 0.1) == (roles[name] in ("matrix", "head")) for name in roles)
    assert {group["role"] for group in optimizer.param_groups} == {"embedding", "matrix", "head", "vector"}


def test_roles_may_have_optimizers_of_their_own() -> None:
    model = gpt()
    optimizer = built({"roles": {"matrix": LION_LIKE, "embedding,vector,head": ADAMW}}, model)
    kinds = {
        optimizer.names[p]: type(member).__name__
        for member in optimizer.optimizers
        for group in member.param_groups
        for p in group["params"]
    }
    assert {name for name, kind in kinds.items() if kind == "SGD"} == {
        n for n, r in model.roles().items() if r == "matrix"
    }
    assert kinds.keys() == model.roles().keys()


def test_rest_stands_for_the_roles_that_are_not_named() -> None:
    model = gpt(tied_head=False)
    optimizer = built({"roles": {"matrix": LION_LIKE, "head,vector": LION_LIKE, "rest": ADAMW}}, model)
    adamw = optimizer.optimizers[2].param_groups
    assert {optimizer.names[p] for group in adamw for p in group["params"]} == {"wte.weight", "wpe.weight"}


def test_a_role_may_have_settings_of_its_own() -> None:
    settings = {"embedding": {"lr": 0.5, "betas": [0.5, 0.6]}, "vector": {"weight_decay": 0.3}}
    optimizer = built({**ADAMW, "role_settings": settings, "decay_roles": ["matrix"]}, gpt(tied_head=False))
    found = {group["role"]: group for group in optimizer.param_groups}
    assert {role: group["lr"] for role, group in found.items()} == {
        "embedding": 0.5,
        "matrix": 1e-3,
        "head": 1e-3,
        "vector": 1e-3,
    }
    assert found["embedding"]["betas"] == (0.5, 0.6)
    assert {role: group["weight_decay"] for role, group in found.items()} == {
        "embedding": 0.0,
        "matrix": 0.1,
        "head": 0.0,
        "vector": 0.3,
    }
    with pytest.raises(
        ValueError, match=r"role_settings\.head\.execution: optim\.Lion has no such setting .*lr, betas"
    ):
        built({"_target_": "optim.Lion", "role_settings": {"head": {"execution": "eager"}}}, gpt())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**ADAMW, "lrr": 1}, "optim.lrr: torch.optim.AdamW takes no such argument; it accepts lr, betas, eps"),
        ({"_target_": "optim.Sofia"}, "optim._target_=optim.Sofia cannot be imported"),
        ({"_target_": "nowhere.Adam"}, "optim._target_=nowhere.Adam cannot be imported"),
        ({"lr": 1}, "a node needs _target_"),
        (
            {"_target_": "optim.Sophia", "curvature": {"_target_": "optim.Hutchinson", "evry": 3}},
            "optim.curvature.evry: optim.Hutchinson takes no such argument; it accepts every, sequences, fraction",
        ),
        (
            {**ADAMW, "decay_roles": ["matrices"]},
            "decay_roles: 'matrices' must be one of embedding, matrix, head, vector",
        ),
        (
            {**ADAMW, "role_settings": {"heads": {}}},
            "role_settings: 'heads' must be one of embedding, matrix, head, vector",
        ),
        ({"roles": {"matricks": ADAMW}}, "optim.roles: 'matricks' must be rest, or one of"),
        (
            {"roles": {"matrix,head": ADAMW, "vector,embedding": ADAMW, "rest": ADAMW}},
            "optim.roles: no role is left for rest",
        ),
        ({"roles": {"matrix": ADAMW}, "lr": 1}, "optim has roles and beside them lr"),
    ],
)
def test_a_wrong_config_fails_before_there_is_a_model(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check(config)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"matrix": ADAMW}, r"wte.weight \(role embedding\) is owned by no optimizer"),
        (
            {"matrix,embedding": ADAMW, "vector": ADAMW, "embedding": ADAMW},
            r"wte.weight \(role embedding\) is owned by 2 optimizers",
        ),
        (
            {"matrix,embedding,vector": ADAMW, "head": ADAMW},  # it is tied
            "optim.roles.head: the model has no parameter with such a role; leave that node out",
        ),
    ],
)
def test_a_parameter_without_exactly_one_owner_or_an_owner_without_one_is_an_error(
    roles: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        built({"roles": roles}, gpt())


class Counting(torch.optim.SGD):
    """A foreign optimizer whose state holds a python number and whose groups hold another."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["calls"] = group.get("calls", 0) + 1
            for p in group["params"]:
                self.state[p]["count"] = self.state[p].get("count", 0) + 1
                p.sub_(group["lr"] * p.grad / self.state[p]["count"])


FOREIGN = {"_target_": f"{__name__}.Counting", "lr": 0.1}


@pytest.mark.parametrize("config", [ADAMW, {**ADAMW, "fused": True}, FOREIGN, dict(compose(["optim=sophiag"]).optim)])
def test_state_saved_and_loaded_continues_bit_for_bit(config: dict[str, Any]) -> None:
    def steps(model: GPT, optimizer: OptimizerSet, first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            for estimator in optimizer.estimators:
                estimator.every, estimator.estimate = 1, lambda *a: {p: p.detach() ** 2 for p in model.parameters()}
                estimator.update(step, [], None)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
            optimizer.zero_grad()

    config = {k: (dict(v) if hasattr(v, "keys") else list(v) if hasattr(v, "append") else v) for k, v in config.items()}
    straight, stopped, resumed = gpt(), gpt(), gpt()
    steps(straight, built(config, straight), 0, 6)
    first, second = built(config, stopped), built(config, resumed)
    steps(stopped, first, 0, 3)
    tensors, rest = first.save_state()
    assert first.state_bytes() == sum(t.nbytes for t in tensors.values() if t.ndim)
    resumed.load_state_dict(stopped.state_dict())
    second.load_state({name: t.clone() for name, t in tensors.items()}, rest)
    for name, tensor in second.save_state()[0].items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])
    steps(resumed, second, 3, 6)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


class Fed(torch.optim.SGD):
    """A foreign optimizer that averages curvature, by an estimator of ours."""

    def __init__(self, params: Any, lr: float, curvature: Curvature) -> None:
        super().__init__(params, lr)
        self.curvature, self.estimates = curvature, 0

    def update_curvature(self, estimates: Mapping[Tensor, Tensor]) -> None:
        self.estimates += len(estimates)


def test_a_foreign_optimizer_may_have_an_estimator_of_curvature() -> None:
    model, curvature = gpt(), {"_target_": "optim.GaussNewtonBartlett", "every": 1}
    optimizer = built({"_target_": f"{__name__}.Fed", "lr": 0.1, "curvature": curvature}, model)
    (estimator,), (fed,) = optimizer.estimators, optimizer.optimizers
    estimator.estimate = lambda *_: {p: p.detach() ** 2 for p in model.parameters()}  # type: ignore[method-assign]
    estimator.update(0, [], lambda *_: torch.zeros(()))
    assert fed.estimates == len(list(model.parameters()))
    assert optimizer.diagnostics() == {} and optimizer.hints({}) == []


LION = {"_target_": "optim.Lion"}


def test_a_complex_parameter_is_refused_by_its_fqn() -> None:
    model = gpt()
    model.h[0].register_parameter("phase", nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64)))
    with pytest.raises(ValueError, match="Lion: h.0.phase is torch.complex64; optimizers here take real"):
        built(LION, model)
    built(ADAMW, model)  # torch's own takes them


@pytest.mark.parametrize("config", [ADAMW, {**ADAMW, "fused": True}, LION])
def test_numbers_of_any_kind_in_a_group_are_saved(config: dict[str, Any]) -> None:
    model = gpt()
    optimizer = built(config, model)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    optimizer.param_groups[1]["lr"] = np.float32(0.5)
    _, rest = optimizer.save_state()
    fresh = built(config, gpt())
    fresh.load_state({}, json.loads(json.dumps(rest)))
    assert [group["lr"] for group in fresh.param_groups[:2]] == [0.25, 0.5]


@pytest.mark.parametrize("config", [ADAMW, LION])
def test_state_that_was_not_saved_is_gone_after_a_load(config: dict[str, Any]) -> None:
    optimizer = built(config, gpt())
    nothing = optimizer.save_state()
    for param in optimizer.names:
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.load_state(*nothing)
    assert not optimizer.save_state()[0]


@pytest.mark.parametrize("config", [{**ADAMW, "fused": True}, LION])
def test_a_step_that_was_not_to_be_taken_stops_no_later_one(config: dict[str, Any]) -> None:
    """As on a device whose host does not know."""
    optimizer = built(config, gpt())
    params = list(optimizer.names)
    for param in params:
        param.grad = torch.ones_like(param)
    before = [param.detach().clone() for param in params]
    for member in optimizer.optimizers:
        step_where(torch.tensor(False), member)
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))
    optimizer.step()
    assert not any(torch.equal(param, old) for param, old in zip(params, before, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, r: s.pop("wte.weight.exp_avg"), "Lion: state 'exp_avg' .* is absent"),
        (lambda s, r: s.update({"wte.weight.x": torch.zeros(1)}), "Lion: state 'x' .* should be absent"),
        (lambda s, r: s.update({"wte.weight.exp_avg": torch.zeros(1)}), r"Lion: state 'exp_avg' .*\(1,\)"),
        (
            lambda s, r: s.update({"h.9.exp_avg": torch.zeros(1)}),
            r"of a parameter that the model lacks: h\.9",
        ),
        (lambda s, r: r["groups"].pop(), "has 2 parameter groups, this one 3"),
    ],
)
def test_state_that_does_not_fit_is_refused_by_name(change: Any, message: str) -> None:
    model = gpt()
    optimizer = built(LION, model)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    tensors, rest = optimizer.save_state()
    change(tensors, rest)
    with pytest.raises(ValueError, match=message):
        built(LION, gpt()).load_state(tensors, rest)


def test_settings_reach_the_constructor_and_lists_become_tuples() -> None:
    optimizer = built({**ADAMW, "betas": [0.8, 0.7]}, gpt())
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.7)
    assert isinstance(optimizer.optimizers[0], torch.optim.AdamW)


class Odd(torch.optim.SGD):
    """Refuses what is negative with an exception that says nothing, as others' classes may."""

    def __init__(self, params: Any, lr: float) -> None:
        if lr < 0:
            raise AssertionError
        super().__init__(params, lr)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**ADAMW, "fused": True, "foreach": True}, r"torch.optim.AdamW: RuntimeError: `fused` and `foreach` cannot"),
        ({**ADAMW, "lr": -1}, "torch.optim.AdamW: Invalid learning rate: -1"),
        ({**ADAMW, "lr": "a"}, "torch.optim.AdamW: TypeError: "),
        ({"_target_": f"{__name__}.Odd", "lr": -1}, rf"^{__name__}.Odd: AssertionError$"),
        ({"_target_": "optim.Lion", "lr": -1}, "^Lion: lr=-1 must be >= 0"),
        ({**ADAMW, "role_settings": {"matrix": {"lr": -1}}}, "torch.optim.AdamW: Invalid learning rate: -1"),
        ({"_target_": "optim.Lion", "role_settings": {"matrix": {"lr": -1}}}, "^Lion: lr=-1 must be >= 0"),
    ],
)
def test_whatever_a_constructor_raises_is_one_line_that_names_the_class(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        built(config, gpt())
    assert "\n" not in str(caught.value)


def test_settings_of_a_role_that_a_class_would_refuse_for_all_are_no_second_optimizer() -> None:
    optimizer = built({**ADAMW, "role_settings": {"matrix": {"lr": 0.5}, "head": {"lr": 0.1}}}, gpt())
    assert {group["role"]: group["lr"] for group in optimizer.param_groups}["matrix"] == 0.5


@pytest.mark.parametrize(
    ("target", "reason"),
    [("SparseAdam", "RuntimeError: SparseAdam does not support dense gradients"), ("LBFGS", "TypeError: .*closure")],
)
def test_an_optimizer_whose_first_step_fails_is_not_for_the_model(target: str, reason: str) -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight.grad = torch.ones(2, 2)
    config = {"_target_": f"torch.optim.{target}", "lr": 0.1}
    optimizer = build(config, {"weight": model.weight}, {"weight": "matrix"}, seed=1, global_batch=1)
    with pytest.raises(ValueError, match=rf"^optim: in the first step, torch\.optim\..*{target}: {reason}"):
        optimizer.step(is_finite=torch.tensor(True))


def test_a_later_step_that_fails_is_no_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt()
    optimizer = built({"_target_": "torch.optim.SGD", "lr": 0.1}, model)
    optimizer.step()
    monkeypatch.setattr(optimizer.optimizers[0], "step", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()


def test_zero_grad_forgets_every_gradient() -> None:
    model = gpt()
    optimizer = built({"roles": {"matrix": LION_LIKE, "embedding,vector,head": ADAMW}}, model)
    for p in model.parameters():
        p.grad = nn.Parameter(torch.ones_like(p)).data
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())

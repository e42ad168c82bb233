"""What the engine promises every rule, shown on the simplest one."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rules
import torch
from rules import RULES, made, parameters
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from optim import SGD, Adafactor, AdamW, GaLore, GaussNewtonBartlett, Lion, Signum, Sophia
from optim.base import Hyper, Params, RuleOptimizer, Shape, Spec


class Heavyball(RuleOptimizer):
    """u is an average of gradients."""

    elementwise = True

    def __init__(self, params: Params, lr: float = 0.1, beta: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        return {"exp_avg": Spec(shape)}

    def direction(self, grad: Tensor, param: Tensor, state: dict[str, Tensor], hp: Hyper) -> Tensor:
        return state["exp_avg"].mul_(hp.beta).add_(grad)


SHAPES = [(4, 3), (3,), (), (1, 2), (2, 3, 4)]


def parameter(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor([1.0, -2.0, 4.0], dtype=dtype, requires_grad=True)


def step(optimizer: RuleOptimizer, param: Tensor, n: int) -> None:
    for i in range(n):
        param.grad = torch.tensor([1.0, 0.5, -0.25]).to(param.dtype) * (i + 1)
        optimizer.step()


def test_an_update_is_decay_then_minus_lr_times_the_direction() -> None:
    param = parameter()
    step(Heavyball([param], lr=0.5, weight_decay=0.5), param, 1)
    expected = torch.tensor([1.0, -2.0, 4.0]) * 0.75 - 0.5 * torch.tensor([1.0, 0.5, -0.25])
    torch.testing.assert_close(param.detach(), expected)


def test_a_rule_may_have_a_decay_of_its_own() -> None:
    class Shrinking(Heavyball):
        decays_in_direction = True

        def direction(self, grad: Tensor, param: Tensor, state: dict[str, Tensor], hp: Hyper) -> Tensor:
            return grad + hp.weight_decay * param.sign()

    param = parameter()
    step(Shrinking([param], lr=0.5, weight_decay=0.5), param, 1)
    torch.testing.assert_close(param.detach(), torch.tensor([1.0 - 0.5 - 0.25, -2.0 - 0.25 + 0.25, 4.0 + 0.125 - 0.25]))


@pytest.mark.parametrize(
    ("dtype", "state"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_state_is_fp32_or_wider_and_loads_verbatim(dtype: torch.dtype, state: torch.dtype) -> None:
    param = parameter(dtype)
    optimizer = Heavyball([param])
    step(optimizer, param, 3)
    assert optimizer.state[param]["exp_avg"].dtype == state
    fresh = Heavyball([param])
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert fresh.state[param]["exp_avg"].dtype == state
    assert torch.equal(fresh.state[param]["exp_avg"], optimizer.state[param]["exp_avg"])
    assert fresh.state[param]["step"] == 3
    assert fresh.state[param]["exp_avg"] is not optimizer.state[param]["exp_avg"]


def test_narrow_parameters_are_updated_in_fp32() -> None:
    wide, narrow = parameter(), parameter(torch.bfloat16)
    for param in (wide, narrow):
        step(Heavyball([param], lr=1e-2, weight_decay=0.1), param, 1)
    assert torch.equal(narrow.detach(), wide.detach().bfloat16())


def test_parameters_without_gradient_are_left_alone() -> None:
    moved, still = parameter(), parameter()
    optimizer = Heavyball([moved, still], weight_decay=0.5)
    step(optimizer, moved, 2)
    assert torch.equal(still.detach(), parameter().detach())
    assert still not in optimizer.state


def test_a_closure_runs_first_with_gradients_on_and_its_value_returns() -> None:
    param = parameter()
    optimizer = Heavyball([param], lr=1.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = param.sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    torch.testing.assert_close(param.detach(), torch.tensor([0.0, -3.0, 3.0]))


def test_groups_keep_their_own_settings_and_torchs_schedulers_work() -> None:
    a, b = parameter(), parameter()
    optimizer = Heavyball([{"params": [a], "lr": 1.0}, {"params": [b], "weight_decay": 0.5}], lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for param in (a, b):
        param.grad = torch.zeros(3)
    optimizer.step()
    scheduler.step()
    assert torch.equal(a.detach(), parameter().detach())
    torch.testing.assert_close(b.detach(), 0.75 * parameter().detach())
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]


def test_a_checkpoint_is_plain_tensors(tmp_path: Any) -> None:
    param = parameter()
    optimizer = Heavyball([param])
    step(optimizer, param, 2)
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    loaded = torch.load(tmp_path / "o.pt", weights_only=True)
    fresh = Heavyball([param])
    fresh.load_state_dict(loaded)
    assert torch.equal(fresh.state[param]["exp_avg"], optimizer.state[param]["exp_avg"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(exp_avg=torch.zeros(2)), r"state 'exp_avg' of a parameter of shape \(3,\) should be"),
        (lambda s: s.update(exp_avg=torch.zeros(3).bfloat16()), "state 'exp_avg' .* is .*bfloat16"),
        (lambda s: s.update(other=torch.zeros(3)), "state 'other' .* should be absent"),
        (lambda s: s.pop("exp_avg"), "state 'exp_avg' .* is absent"),
    ],
)
def test_state_that_does_not_fit_is_refused(change: Any, message: str) -> None:
    param = parameter()
    optimizer = Heavyball([param])
    step(optimizer, param, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved["state"][0])
    fresh = Heavyball([param])
    with pytest.raises(ValueError, match=message):
        fresh.load_state_dict(saved)
    assert not fresh.state


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("flat", [True, False])
def test_torchs_distributed_checkpoint_tools_carry_the_state(rule: str, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    models = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]
    optimizer, fresh = (made(rule, model.parameters()) for model in models)
    for n in range(3):
        rules.step(optimizer, n)
    optimizer.zero_grad()
    saved = copy.deepcopy(get_optimizer_state_dict(models[0], optimizer, options=options))
    set_optimizer_state_dict(models[1], fresh, saved, options=options)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert optimizer.state[a].keys() == fresh.state[b].keys()
        assert all(torch.equal(fresh.state[b][name], tensor) for name, tensor in optimizer.state[a].items())


def test_what_is_no_state_dict_is_refused() -> None:
    odd_groups: list[Any] = [{}, {"params": None}, {"params": [0], "param_names": [1]}]
    wrongs: list[Any] = [None, [], {}, {"state": {}}, {"state": {0: [1]}, "param_groups": []}]
    for wrong in (*wrongs, *({"state": {}, "param_groups": [group]} for group in odd_groups)):
        with pytest.raises(ValueError, match="Heavyball: load_state_dict takes what state_dict\\(\\) gave"):
            Heavyball([parameter()]).load_state_dict(wrong)


@pytest.mark.parametrize("rule", RULES)
def test_settings_of_another_kind_are_refused_and_change_nothing(rule: str) -> None:
    optimizer = made(rule, torch.nn.Linear(4, 3).parameters())
    before = copy.deepcopy(optimizer.param_groups[0])
    for key, value in before.items():
        if key in ("params", "param_names", "role") or value is None:
            continue
        other = 0.5 if isinstance(value, bool | str) else True
        for odd in ([1], {}, torch.tensor([1.0, 1.0]), other, *([] if isinstance(value, str) else ["x"])):
            saved = copy.deepcopy(optimizer.state_dict())
            saved["param_groups"][0][key] = odd
            with pytest.raises(ValueError, match=f"the saved optimizer state has {key}="):
                optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0].keys() == before.keys()
    assert all(optimizer.param_groups[0][key] == value for key, value in before.items() if key != "params")


def test_state_without_numbers_is_refused() -> None:
    param = parameter()
    optimizer = Heavyball([param])
    step(optimizer, param, 1)
    for odd in ("meta", "sparse"):
        saved = copy.deepcopy(optimizer.state_dict())
        for name, tensor in saved["state"][0].items():
            if tensor.ndim:
                saved["state"][0][name] = tensor.to("meta") if odd == "meta" else tensor.to_sparse()
        with pytest.raises(ValueError, match="of a parameter of shape .* should be .*, is torch"):
            Heavyball([parameter()]).load_state_dict(saved)


Groups = list[dict[str, Any]]


def two(first: dict[str, Any], second: dict[str, Any], names: str | None = None) -> Groups:
    """Two groups of one parameter each, of one shape."""
    params: list[Any] = [parameter(), parameter()]
    if names is not None:
        params = list(zip(names, params, strict=True))
    return [{"params": [params[0]], **first}, {"params": [params[1]], **second}]


@pytest.mark.parametrize(
    ("saved", "ours", "message"),
    [
        (two({}, {}, "ab"), two({}, {}, "ba"), "parameter 0 of group 0 is a in the saved .*, here b; give .* order"),
        (two({"role": "head"}, {}), two({}, {"role": "head"}), "group 0 has role head in the saved .*, here None"),
        (
            two({"weight_decay": 0.1}, {"weight_decay": 0.0}),
            two({"weight_decay": 0.0}, {"weight_decay": 0.1}),
            "group 0 of the saved optimizer state has the settings of group 1 here; give the groups in the saved order",
        ),
        (
            [{"params": [parameter(), parameter()]}, {"params": [parameter()]}],
            [{"params": [parameter()]}, {"params": [parameter(), parameter()]}],
            "group 0 has 2 parameters in the saved optimizer state, here 1",
        ),
    ],
)
def test_groups_saved_in_another_order_are_refused(saved: Groups, ours: Groups, message: str) -> None:
    first, second = Heavyball(saved, lr=0.1), Heavyball(ours, lr=0.1)
    for optimizer in (first, second):
        rules.step(optimizer, 0)
    before = copy.deepcopy(second.state_dict())
    rules.step(first, 1)
    with pytest.raises(ValueError, match=f"Heavyball: parameter {message}".replace("parameter parameter", "parameter")):
        second.load_state_dict(first.state_dict())
    after = second.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(after["state"][i]["exp_avg"], before["state"][i]["exp_avg"]) for i in (0, 1))


def test_other_settings_for_the_same_groups_are_replaced_by_the_saved_ones() -> None:
    saved = Heavyball(two({"weight_decay": 0.1}, {"weight_decay": 0.0}), lr=0.1)
    ours = Heavyball(two({"weight_decay": 0.3}, {"weight_decay": 0.0}), lr=0.5)
    ours.load_state_dict(saved.state_dict())
    assert [(group["lr"], group["weight_decay"]) for group in ours.param_groups] == [(0.1, 0.1), (0.1, 0.0)]


@pytest.mark.parametrize(
    ("rule", "setting", "values"),
    [
        ("sgd", "momentum", [0.9, 0.0, 0.9]),
        ("adafactor", "beta1", [None, 0.9, None]),
        ("adapprox", "beta1", [0.9, None, 0.9]),
        ("shampoo", "grafting", ["adam", None, "adam"]),
        ("shampoo", "eigensolver", ["eigh", "qr", "eigh"]),
        ("soap", "one_sided", [False, True, False]),
    ],
)
def test_state_follows_settings_that_change(rule: str, setting: str, values: list[Any]) -> None:
    optimizer = made(rule, parameters(SHAPES), **({"nesterov": False} if rule == "sgd" else {}))
    for n, value in enumerate(values):
        optimizer.param_groups[0][setting] = value
        rules.step(optimizer, n)
        fresh = made(rule, parameters(SHAPES), **({"nesterov": False} if rule == "sgd" else {}))
        fresh.load_state_dict(optimizer.state_dict())  # whatever the settings, state and spec agree
        own = {"step", *optimizer.state_spec((4, 3), Hyper(optimizer.param_groups[0]))}
        assert optimizer.state[optimizer.param_groups[0]["params"][0]].keys() == own


@pytest.mark.parametrize(
    ("rule", "setting", "value"), [("galore", "rank", 3), ("flora", "rank", 1), ("adapprox", "max_rank_fraction", 0.9)]
)
def test_a_rank_that_changes_between_steps_is_refused(rule: str, setting: str, value: float) -> None:
    params = parameters([(3,), (4, 3)])
    optimizer = made(rule, params)
    rules.step(optimizer, 0)
    before = copy.deepcopy((params, optimizer.state_dict()["state"]))
    optimizer.param_groups[0][setting] = value
    with pytest.raises(ValueError, match=r"state '\w+' of parameter 1 of group 0, .* the settings now want"):
        rules.step(optimizer, 1)
    torch.testing.assert_close((params, optimizer.state_dict()["state"]), before, rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_empty_groups_are_no_trouble(rule: str) -> None:
    optimizer = made(rule, [{"params": []}, {"params": parameters(SHAPES)}, {"params": []}])
    for n in range(3):
        optimizer.measures = True
        rules.step(optimizer, n)
        assert all(value.isfinite() for value in optimizer.diagnostics().values())
    fresh = made(rule, [{"params": []}, {"params": parameters(SHAPES)}, {"params": []}])
    fresh.load_state_dict(optimizer.state_dict())
    empty = made(rule, [{"params": []}])
    empty.step()
    empty.diagnostics()


RANGES: list[tuple[Callable[..., RuleOptimizer], dict[str, Any], str]] = [
    (AdamW, {"lr": -1e-9}, "AdamW: lr=-1e-09 must be >= 0"),
    (AdamW, {"lr": math.nan}, "AdamW: lr=nan must be >= 0"),
    (AdamW, {"lr": math.inf}, "AdamW: lr=inf must be >= 0 and finite"),
    (AdamW, {"lr": "1e-3x"}, "AdamW: lr='1e-3x' must be >= 0"),
    (AdamW, {"betas": (0.9, 1.0)}, r"AdamW: betas\[1\]=1.0 must be in \[0, 1\)"),
    (AdamW, {"betas": (0.9,)}, r"AdamW: betas=\(0.9,\) must be 2 numbers, as \(0.9, 0.999\)"),
    (AdamW, {"betas": 0.9}, r"AdamW: betas=0.9 must be 2 numbers, as \(0.9, 0.999\)"),
    (Adafactor, {"eps": (1e-30,)}, r"Adafactor: eps=\(1e-30,\) must be 2 numbers, as \(1e-30, 0.001\)"),
    (Adafactor, {"relative_step": "false"}, "Adafactor: relative_step='false' must be true or false"),
    (Adafactor, {"relative_step": 1}, "Adafactor: relative_step=1 must be true or false"),
    (GaLore, {"update_interval": 1.5}, "GaLore: update_interval=1.5 must be a whole number"),
    (AdamW, {"eps": -1e-8}, "AdamW: eps=-1e-08 must be >= 0"),
    (AdamW, {"weight_decay": -0.1}, "AdamW: weight_decay=-0.1 must be >= 0"),
    (SGD, {"momentum": 1.0}, r"SGD: momentum=1.0 must be in \[0, 1\)"),
    (SGD, {"dampening": -0.5}, r"SGD: dampening=-0.5 must be in \[0, 1\)"),
    (SGD, {"momentum": 0.0, "nesterov": True}, "SGD: nesterov=True needs momentum > 0"),
    (Lion, {"betas": (-0.1, 0.9)}, r"Lion: betas\[0\]=-0.1 must be in \[0, 1\)"),
    (Signum, {"momentum": 2}, r"Signum: momentum=2 must be in \[0, 1\)"),
    (Sophia, {"rho": -1.0}, "Sophia: rho=-1.0 must be > 0"),
    (Sophia, {"eps": 0.0}, "Sophia: eps=0.0 must be > 0"),
]


@pytest.mark.parametrize(("rule", "setting", "message"), RANGES)
def test_values_out_of_range_are_refused(
    rule: Callable[..., RuleOptimizer], setting: dict[str, Any], message: str
) -> None:
    extra = {"curvature": GaussNewtonBartlett()} if rule is Sophia else {}
    with pytest.raises(ValueError, match=message):
        rule([parameter()], **setting, **extra)
    optimizer = rule([parameter()], **extra)
    with pytest.raises(ValueError, match=message):  # a group of its own, added later
        optimizer.add_param_group({"params": [parameter()], **setting})
    assert len(optimizer.param_groups) == 1
    if "lr" not in setting:  # which schedules may change in every step
        optimizer.param_groups[0].update(setting)
        with pytest.raises(ValueError, match=message):
            optimizer.step()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [torch.tensor, np.float32, np.float64, np.array])
def test_lr_may_be_a_tensor_or_a_number_of_numpys(rule: str, kind: Callable[[float], Any]) -> None:
    found, expected = parameters(SHAPES), parameters(SHAPES)
    lr = float(kind(0.01))  # 0.01 in fp32, for some
    optimizers = made(rule, found, lr=kind(0.01)), made(rule, expected, lr=lr)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in optimizers]
    for n in range(4):
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            rules.step(optimizer, n)
            scheduler.step()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert isinstance(optimizers[0].param_groups[0]["lr"], Tensor) == (kind is torch.tensor)
    buffer = io.BytesIO()
    torch.save(optimizers[0].state_dict(), buffer)
    again = made(rule, parameters(SHAPES), lr=kind(0.5))
    again.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert again.param_groups[0]["lr"] == lr / 16


@pytest.mark.parametrize("rule", RULES)
def test_with_lr_0_nothing_moves_and_the_state_goes_on(rule: str) -> None:
    still, moving = parameters(SHAPES), parameters(SHAPES)
    optimizers = made(rule, still, lr=0), made(rule, moving, lr=0.01)
    for n in range(2):
        for optimizer in optimizers:
            rules.step(optimizer, n)
    assert all(torch.equal(a, b) for a, b in zip(still, parameters(SHAPES), strict=True))
    for a, b in zip(still, moving, strict=True):
        ours, theirs = (optimizer.state[p] for optimizer, p in zip(optimizers, (a, b), strict=True))
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


UNREAL = torch.zeros(2, 3, dtype=torch.complex64, requires_grad=True)
TWICE = torch.zeros(2, 3, requires_grad=True)
REFUSED: dict[str, dict[str, Any]] = {
    r"parameter 0 of group 0, .* and parameter 2 of group 0, .* are the same parameter, so it would be updated twice": {
        "params": [TWICE, torch.zeros(2, 3, requires_grad=True), TWICE]
    },
    r"parameter 1 of group 0, of shape \(2, 3\), is torch.complex64; optimizers here take real": {
        "params": [torch.zeros(2, 3, requires_grad=True), UNREAL]
    },
    "blocks.0.phase is torch.complex64": {"params": [("blocks.0.phase", UNREAL)]},
    "parameter 0 of group 0, .* is torch.int64": {"params": [torch.zeros(2, 3, dtype=torch.int64)]},
    "a parameter group has no setting 'weigth_decay'; nearest: weight_decay; all: lr, ": {
        "params": [torch.zeros(2, 3, requires_grad=True)],
        "weigth_decay": 0.1,
    },
    "a parameter group has no setting 'maximize'": {
        "params": [torch.zeros(2, 3, requires_grad=True)],
        "maximize": True,
    },
}


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")  # torch's
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("message", REFUSED)
def test_a_group_that_cannot_be_optimized_is_refused_by_name(rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{RULES[rule][0].__name__}: {message}"):
        made(rule, [dict(REFUSED[message])])
    optimizer = made(rule, parameters([(3, 2)]))
    with pytest.raises(ValueError, match=message.replace("group 0", "group 1")):
        named = [p if isinstance(p, Tensor) else p[1] for p in REFUSED[message]["params"]]
        optimizer.add_param_group(REFUSED[message] | {"params": named} if "phase" not in message else _named(optimizer))
    assert len(optimizer.param_groups) == 1


def _named(optimizer: RuleOptimizer) -> dict[str, Any]:
    optimizer.param_groups[0]["param_names"] = ["weight"]
    return {"params": [("blocks.0.phase", UNREAL)]}


def test_keys_that_torch_and_its_schedulers_keep_in_a_group_are_accepted() -> None:
    for make in (
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.1, 0.2, cycle_momentum="momentum" in o.defaults),
        lambda o: torch.optim.swa_utils.SWALR(o, 0.05),
    ):
        for rule in ("adamw", "sgd"):
            optimizer = made(rule, [("w", parameter())])
            scheduler = make(optimizer)
            for n in range(3):
                rules.step(optimizer, n)
                scheduler.step()
            fresh = made(rule, [("w", parameter())])
            fresh.load_state_dict(optimizer.state_dict())
            fresh.add_param_group({**fresh.param_groups[0], "params": [("v", parameter())]})
            assert len(fresh.param_groups) == 2


def test_a_sparse_gradient_is_refused_by_name_before_anything_moves() -> None:
    dense, table = parameter(), torch.nn.Embedding(4, 3, sparse=True)
    optimizer = AdamW([{"params": [("dense", dense)]}, {"params": [("table.weight", table.weight)]}])
    dense.grad = torch.ones(3)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="AdamW: the gradient of table.weight is torch.sparse_coo; .*take dense ones"):
        optimizer.step()
    assert torch.equal(dense.detach(), parameter().detach()) and optimizer.state[dense]["step"] == 0


def test_direction_sees_neither_t_nor_lr() -> None:
    class Peeking(Heavyball):
        def direction(self, grad: Tensor, param: Tensor, state: dict[str, Tensor], hp: Hyper) -> Tensor:
            return grad * hp.lr

    param = parameter()
    with pytest.raises(AttributeError, match="there is no 'lr' here, only .*beta"):
        step(Peeking([param]), param, 1)


class Patient(Heavyball):
    """Whole tensors; its first step only looks, later ones go as far as refresh says."""

    elementwise = False

    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        return {"seen": Spec(()), "count": Spec((), torch.int64)}

    def refresh(self, grad: Tensor, param: Tensor, state: dict[str, Tensor], hp: Hyper) -> None:
        assert grad.shape == param.shape and grad.dtype == param.dtype == torch.float32
        state["seen"] += grad.sum()
        state["count"] += hp.t

    def moves(self, hp: Hyper) -> bool:
        return bool(hp.t > 1)

    def direction(self, grad: Tensor, param: Tensor, state: dict[str, Tensor], hp: Hyper) -> Tensor:
        return state["seen"].expand(grad.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refresh_comes_before_direction_and_on_steps_that_do_not_move(dtype: torch.dtype) -> None:
    param = parameter(dtype)
    optimizer = Patient([param], lr=0.5, weight_decay=0.5)
    step(optimizer, param, 1)
    assert torch.equal(param, parameter(dtype))
    assert optimizer.state[param]["seen"] == 1.25
    step(optimizer, param, 1)
    torch.testing.assert_close(param.detach(), (parameter().detach() * 0.75 - 0.5 * 2.5).to(dtype))
    assert optimizer.state[param]["count"] == 3 and optimizer.state[param]["count"].dtype == torch.int64


def test_a_measured_step_says_how_far_it_went() -> None:
    a, b = (torch.full((n,), 2.0, requires_grad=True) for n in (4, 9))
    groups = [{"params": [a], "role": "matrix", "weight_decay": 0.5}, {"params": [b], "role": "vector"}]
    optimizer = Heavyball(groups, lr=0.1, beta=0.0)
    for measured in (True, False):
        optimizer.measures = measured
        a.grad, b.grad = torch.ones(4), torch.full((9,), -3.0)
        optimizer.step()
        found = {name: float(value) for name, value in optimizer.diagnostics().items()}
        wanted = {"update_ratio/matrix": (0.1 + 0.05 * 2) / 2, "update_ratio/vector": 0.15} if measured else {}
        assert found == pytest.approx(wanted)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_goes_on_like_the_original(again: Callable[[RuleOptimizer], RuleOptimizer]) -> None:
    param = parameter()
    optimizer = Sophia([param], lr=0.1, curvature=GaussNewtonBartlett())
    optimizer.update_curvature({param: torch.ones(3)})
    step(optimizer, param, 2)
    other = again(optimizer)
    (twin,) = other.param_groups[0]["params"]
    step(optimizer, param, 2)
    step(other, twin, 2)
    assert twin is not param and torch.equal(twin, param)


def test_the_state_exists_before_the_first_step_if_asked() -> None:
    param = parameter()
    optimizer = Heavyball([param])
    optimizer.init_state()
    assert {name: t.shape for name, t in optimizer.state[param].items()} == {"step": (), "exp_avg": (3,)}
    assert not optimizer.state[param]["exp_avg"].any()

"""The laws of the design, for every option of configs/optim."""

import copy
import functools
import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from every_option import FEWEST, INTERVALS, OPTIONS, few_fast
from torch import Tensor
from torch._C import _functorch as functorch
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from configs import compose
from data import Batch
from model import GPT
from optim.base import RuleOptimizer
from optim.build import build
from optim.ensemble import OptimizerSet
from optim.memory import state_bytes
from optim.nodes import check
from optim.stacks import stacked_tensors
from trainer.parallel import Single

OF_EVERY_OPTION = pytest.mark.parametrize("option", OPTIONS)
G, T, V = 4, 5, 11
SIZES: dict[str, int] = {"seed": 1, "global_batch": G}


def config(option: str, **changes: Any) -> dict[str, Any]:
    """The option's settings, intervals of 3 steps, changes made wherever a node has the key."""
    found: Any = compose([f"optim={option}"]).optim
    for node in nodes(found):
        node |= {key: 3 for key in INTERVALS if key in node} | {k: v for k, v in changes.items() if k in node}
    return dict(found)


def nodes(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict):
        yield found
        for value in found.values():
            yield from nodes(value)


def gpt(dtype: torch.dtype = torch.float32) -> GPT:
    torch.manual_seed(0)
    return GPT(vocab_size=V, n_layer=2, n_head=2, n_embd=8, block_size=T).to(dtype)


def built(settings: dict[str, Any], model: GPT, ends: tuple[str, ...] = ("",)) -> OptimizerSet:
    """Of the parameters whose names end so."""
    params = {name: param for name, param in model.named_parameters() if name.endswith(ends)}
    roles = {name: role for name, role in model.roles().items() if name in params}
    return build(settings, params, roles, **SIZES)


def loss_of(model: torch.nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(batch.inputs, batch.targets)
    return loss


def tokens_of(step: int) -> Tensor:
    """Inputs and targets, (2, G, T), of other random numbers for every step."""
    return torch.randint(0, V, (2, G, T), generator=torch.Generator().manual_seed(step))


def train(
    model: GPT,
    optimizer: OptimizerSet,
    first: int,
    last: int,
    *,
    data: Callable[[int], Tensor] = tokens_of,
    before_step: Callable[[], None] = lambda: None,
) -> float:
    """Steps first to last - 1 as train.py does them, each depending on its number alone; the last loss."""
    strategy = Single(device=torch.device("cpu"), precision="fp32", compiled=False)
    strategy.prepare(model)
    for step in range(first, last):
        tokens = data(step)
        batches = [Batch(tokens[0, i : i + 2], tokens[1, i : i + 2], range(i, i + 2)) for i in (0, 2)]
        for estimator in optimizer.estimators:
            estimator.update(step, batches, strategy.forward_backward)
        loss = strategy.forward_backward(batches, loss_of, G)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) / (1 + step)
        before_step()
        optimizer.step(measured=True)
        optimizer.zero_grad()
    return float(loss)


def resumed(settings: dict[str, Any], model: GPT, optimizer: OptimizerSet) -> tuple[GPT, OptimizerSet]:
    """Both, as a new process finds them in a checkpoint."""
    tensors, rest = optimizer.save_state()
    again = copy.deepcopy(model)
    fresh = built(settings, again)
    fresh.load_state({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(rest)))
    return again, fresh


@OF_EVERY_OPTION
@pytest.mark.parametrize(("dtype", "stop"), [(torch.float32, 4), (torch.bfloat16, 1)])  # 4: within an interval
def test_resume_is_bitwise_identical(option: str, dtype: torch.dtype, stop: int) -> None:
    settings, straight, model = config(option), gpt(dtype), gpt(dtype)
    train(straight, built(settings, straight), 0, 8)
    first = built(settings, model)
    train(model, first, 0, stop)
    again, second = resumed(settings, model, first)
    before, after = first.save_state()[0], second.save_state()[0]
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name
    train(again, second, stop, 8)
    for a, b in zip(straight.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@OF_EVERY_OPTION
def test_state_has_the_bytes_that_the_meta_device_tells_beforehand(option: str) -> None:
    model = gpt()
    optimizer = built(config(option), model)
    train(model, optimizer, 0, 1)
    with torch.device("meta"):
        meta = gpt()
    found = optimizer.state_bytes()
    assert found == sum(tensor.nbytes for tensor in optimizer.save_state()[0].values() if tensor.ndim)
    assert found == state_bytes(config(option), dict(meta.named_parameters()), meta.roles())


@pytest.fixture
def no_loops() -> Iterator[None]:
    """torch.vmap refuses what it would compute for one matrix after the other, for lack of a rule.

    Its warning of that is no warning of Python's where code is compiled.
    """
    functorch._set_vmap_fallback_enabled(False)
    yield
    functorch._set_vmap_fallback_enabled(True)


@OF_EVERY_OPTION
@pytest.mark.usefixtures("no_loops")
def test_matrices_of_a_shape_are_stepped_together_as_each_alone(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices where a launch is expensive."""
    ends = []
    for below in (0, 1 << 25):
        together = functools.partial(lambda stacked, limit, *a, below: stacked(*a, below=limit), stacked_tensors, below)
        monkeypatch.setattr("optim.engine.stacked_tensors", together)
        model = gpt(torch.float64)
        train(model, built(config(option, bf16_products=False), model), 0, 4)
        ends.append([p.detach() for p in model.parameters()])
    for alone, stacked in zip(*ends, strict=True):
        torch.testing.assert_close(stacked, alone, rtol=1e-7, atol=1e-9)


def determined(model: GPT) -> list[Tensor]:
    """The parameters but for the biases of keys: as these change no attention, their gradients are rounding errors.

    Methods that divide by the gradient's size make those large: a change of all parameters by 1e-15 moves these biases
    by 5e-7 of their way.
    """
    C = model.n_embd
    return [
        torch.cat([param[:C], param[2 * C :]]) if name.endswith("c_attn.bias") else param
        for name, param in model.named_parameters()
    ]


@few_fast("option", few=FEWEST)
def test_compiled_and_eager_agree(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without code generation, which takes seconds: what could differ is the tracing of direction.

    Not for many steps: bases of a rank-deficient factor, as SOAP refreshes them, are rounding errors made large. The
    compiled steps are then ones that may be left out, which would be compiled anew in a test of their own.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    models = []
    for execution in ("eager", "compiled"):
        model = gpt(torch.float64)
        optimizer = built(config(option, execution=execution), model)
        train(model, optimizer, 0, 4, before_step=functools.partial(leave_out, optimizer, 0.0))
        models.append(copy.deepcopy(model))
    for a, b, s in zip(*map(determined, (*models, gpt(torch.float64))), strict=True):
        assert (a - b).norm() <= 1e-9 * (a - s).norm()
    check_steps_left_out(model, optimizer)


@few_fast("option", few=("came",))
@pytest.mark.usefixtures("no_loops")
def test_compiled_stacks_and_each_matrix_alone_agree(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices where a launch is expensive, for a model that is large enough to compile; see the test above.

    Every shape is compiled anew: matrices with more rows, and with more columns, vectors, and one that is alone do.
    """
    ends = ("wte.weight", "c_attn.weight", "mlp.c_proj.weight", "ln_1.weight")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    models = []
    for execution, below in (("eager", 0), ("compiled", 1 << 25)):
        together = functools.partial(lambda stacked, limit, *a, below: stacked(*a, below=limit), stacked_tensors, below)
        monkeypatch.setattr("optim.engine.stacked_tensors", together)
        model = gpt(torch.float64)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "optimizer steps run uncompiled")
            train(model, built(config(option, execution=execution, bf16_products=False), model, ends), 0, 4)
        models.append(model)
    for a, b, s in zip(*map(determined, (*models, gpt(torch.float64))), strict=True):
        assert (a - b).norm() <= 1e-7 * (a - s).norm()


@OF_EVERY_OPTION
def test_it_learns(option: str) -> None:
    def alphabet(step: int) -> Tensor:
        row = torch.arange(G * (T + 1)).view(G, T + 1) % V
        return torch.stack([row[:, :-1], row[:, 1:]])

    model = gpt()
    optimizer = built(config(option), model)
    first = train(model, optimizer, 0, 1, data=alphabet)
    assert train(model, optimizer, 1, 15, data=alphabet) < first


@OF_EVERY_OPTION
def test_parameters_without_gradient_stay(option: str) -> None:
    model = gpt()
    optimizer = built(config(option), model)
    frozen = model.h[0].mlp.c_fc.weight
    before = frozen.detach().clone()
    train(model, optimizer, 0, 2, before_step=lambda: setattr(frozen, "grad", None))
    assert torch.equal(frozen.detach(), before)


@OF_EVERY_OPTION
def test_a_step_of_zeros_with_lr_0_is_safe(option: str) -> None:
    """torch's checkpoint tools take such a step to bring the state into being."""
    model = gpt()
    optimizer = built(config(option), model)
    train(model, optimizer, 0, 1)
    before = copy.deepcopy(model.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for _ in range(4):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.isfinite().all() for tensor in optimizer.save_state()[0].values())


@OF_EVERY_OPTION
def test_a_step_that_is_not_to_be_taken_leaves_all_as_it_was(option: str) -> None:
    """As on devices whose host does not know: found_inf says so, torch's fused optimizers obey it too."""
    model = gpt()
    optimizer = built(config(option, execution="eager"), model)
    train(model, optimizer, 0, 2)
    check_steps_left_out(model, optimizer)


def leave_out(optimizer: OptimizerSet, found_inf: float) -> None:
    """Has the next steps be left out if found_inf is not 0, which the host is not told."""
    for member in optimizer.optimizers:
        member.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]


def check_steps_left_out(model: GPT, optimizer: OptimizerSet) -> None:
    """Takes steps that are left out, and ones that are not, with and without a refresh."""
    for found_inf in (1.0, 0.0) * 3:
        before = {name: tensor.clone() for name, tensor in (optimizer.save_state()[0] | model.state_dict()).items()}
        for p in model.parameters():
            p.grad = torch.full_like(p, torch.nan if found_inf else 1.0)
        leave_out(optimizer, found_inf)
        for member in optimizer.optimizers:
            member.step()
        after = optimizer.save_state()[0] | model.state_dict()
        same = {name: torch.equal(after[name], tensor) for name, tensor in before.items() if not name.endswith(".step")}
        assert all(same.values()) if found_inf else not all(same.values()), [n for n in same if not same[n]]
    assert all(tensor.isfinite().all() for tensor in after.values())


@OF_EVERY_OPTION
def test_a_first_step_that_is_not_taken_leaves_nothing_behind(option: str) -> None:
    """First bases and roots come from later gradients."""
    model = gpt()
    optimizer = built(config(option), model)
    before = copy.deepcopy(model.state_dict())

    def spoil() -> None:
        for p in model.parameters():
            p.grad = torch.full_like(p, torch.nan)
        leave_out(optimizer, 1.0)

    train(model, optimizer, 0, 1, before_step=spoil)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for member in optimizer.optimizers:
        member.found_inf = None  # type: ignore[attr-defined]
    train(model, optimizer, 1, 8)
    after = model.state_dict()
    assert all(tensor.isfinite().all() for tensor in [*after.values(), *optimizer.save_state()[0].values()])
    assert not any(torch.equal(tensor, before[name]) for name, tensor in after.items())


@OF_EVERY_OPTION
def test_diagnostics_are_finite_numbers_on_the_device(option: str) -> None:
    model = gpt()
    optimizer = built(config(option), model)
    train(model, optimizer, 0, 4)
    found = optimizer.diagnostics()
    assert all(name.startswith("optim/") and value.ndim == 0 and value.isfinite() for name, value in found.items())
    ours = {g["role"] for m in optimizer.optimizers if isinstance(m, RuleOptimizer) for g in m.param_groups}
    assert ours == {name.removeprefix("optim/update_ratio/") for name in found if "update_ratio" in name}
    optimizer.hints({name: float(value) for name, value in found.items()})


@OF_EVERY_OPTION
@pytest.mark.parametrize("again", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_steps_its_own_parameters_whatever_was_put_on_the_original(
    option: str, again: Callable[..., Any]
) -> None:
    """torch's schedulers put a step() on the optimizer that steps it for ever; hooks hold it likewise."""
    model = gpt()
    optimizer = built(config(option), model)
    for member in optimizer.optimizers:
        torch.optim.lr_scheduler.LambdaLR(member, lambda n: 1.0)
        member.register_step_post_hook(lambda *_: None)
    train(model, optimizer, 0, 4)
    before = copy.deepcopy(model.state_dict())
    twin, other = again((model, optimizer))
    other.load_state(*copy.deepcopy(optimizer.save_state()))
    for member in other.optimizers:
        torch.optim.lr_scheduler.LambdaLR(member, lambda n: 1.0)
    train(twin, other, 4, 8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    train(model, optimizer, 4, 8)
    for name, tensor in twin.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) and not torch.equal(tensor, before[name])


@OF_EVERY_OPTION
def test_parameters_may_be_frozen_for_a_time_or_unused(option: str) -> None:
    model = gpt()
    model.register_parameter("spare", torch.nn.Parameter(torch.ones(3, 2)))
    optimizer, frozen = built(config(option), model), model.h[0].mlp.c_fc.weight
    frozen.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, 0, 4)
    assert torch.equal(frozen, before["h.0.mlp.c_fc.weight"])
    frozen.requires_grad_(True)
    train(model, optimizer, 4, 8)  # with an estimate of curvature at 6
    after = model.state_dict()
    assert [name for name, tensor in before.items() if torch.equal(tensor, after[name])] == ["spare"]
    assert all(tensor.isfinite().all() for tensor in [*after.values(), *optimizer.save_state()[0].values()])


@OF_EVERY_OPTION
def test_parameters_without_numbers_are_no_trouble(option: str) -> None:
    shapes = {"empty": (0,), "no_rows": (0, 5), "no_columns": (5, 0), "matrix": (4, 3), "vector": (3,)}
    params = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    roles = {name: "matrix" if len(shape) == 2 else "vector" for name, shape in shapes.items()}
    optimizer = build(config(option), params, roles, seed=1, global_batch=G)
    for step in range(7):
        for param in params.values():
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
        for estimator in optimizer.estimators:
            estimator.estimate = lambda *_: {p: torch.ones_like(p) for p in params.values()}  # type: ignore[method-assign]
            estimator.update(step, [], lambda *_: torch.zeros(()))
            for param in params.values():
                param.grad = torch.ones_like(param)
        optimizer.step(measured=True)
        assert all(value.isfinite() for value in optimizer.diagnostics().values())
    assert all(tensor.isfinite().all() for tensor in optimizer.save_state()[0].values())
    assert all((params[name] != 1).any() for name in ("matrix", "vector"))


Change = Callable[[dict[str, Tensor], dict[str, Any]], object]
FAILS: dict[str, Change] = {
    "give groups and parameters in the saved order": lambda tensors, rest: rest["groups"].reverse(),
    "has 2 parameter groups, this one 3": lambda tensors, rest: rest["groups"].pop(),
    "of a parameter that the model lacks: h.9": lambda tensors, rest: tensors.update({"h.9.exp_avg": torch.zeros(1)}),
    "state 'odd'": lambda tensors, rest: tensors.update({"h.1.mlp.c_proj.bias.odd": torch.zeros(1)}),
}
# What belongs to the state of a foreign optimizer, its class alone knows.
LOADS = [(option, message) for option in OPTIONS for message in FAILS if (option, message) != ("adamw", "state 'odd'")]


@pytest.mark.parametrize(("option", "message"), LOADS)
def test_a_load_that_fails_changes_nothing(option: str, message: str) -> None:
    model = gpt()
    optimizer = built(config(option), model)
    train(model, optimizer, 0, 3)
    tensors, rest = copy.deepcopy(optimizer.save_state())
    train(model, optimizer, 3, 5)
    before = copy.deepcopy(optimizer.save_state())
    FAILS[message](tensors, rest)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state(tensors, rest)
    after = optimizer.save_state()
    assert after[1] == before[1]
    assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())


@OF_EVERY_OPTION
def test_an_unknown_key_is_refused_before_there_is_a_model(option: str) -> None:
    settings = config(option)
    for node in [found for found in nodes(settings) if "_target_" in found]:
        node["lrr"] = 1
        with pytest.raises(ValueError, match=rf"lrr: {node['_target_']} takes no such argument; it accepts"):
            check(settings)
        del node["lrr"]
    check(settings)


class Copied(TorchDispatchMode):
    """Notes where the tensors lie that are cloned."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.clone:
            self.places.add(args[0].data_ptr())
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("option", ["coap", "galore", "shampoo", "soap"])
def test_an_ordinary_step_that_the_device_may_leave_out_copies_no_factors(option: str) -> None:
    """They are several times as large as the parameters."""
    model = gpt()
    optimizer = build(compose([f"optim={option}"]).optim, dict(model.named_parameters()), model.roles(), **SIZES)
    train(model, optimizer, 0, 2)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    copied, read_only = Copied(), []
    for member in optimizer.optimizers:
        member.found_inf = torch.zeros(())  # type: ignore[attr-defined]
        with copied:
            member.step()
        names = getattr(member, "read_only", ())
        read_only += [tensor for state in member.state.values() for name, tensor in state.items() if name in names]
    assert copied.places and read_only
    assert not copied.places & {tensor.data_ptr() for tensor in read_only}

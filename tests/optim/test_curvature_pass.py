"""The extra pass in loops of others: against a closed form, the pass of train.py, and other forms of the same batch."""

import ast
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.nn.functional as F
import world
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_callback import CallbackHandler, TrainerCallback, TrainerControl, TrainerState

from data import Batch
from model import GPT
from optim import CurvatureCallback, CurvaturePass, GaussNewtonBartlett, Hutchinson, Sophia
from optim.curvature import Curvature
from trainer.parallel import Single

V = 5
RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
BOTH = pytest.mark.parametrize("estimator", [GaussNewtonBartlett, Hutchinson])


class Collector:
    """An optimizer that keeps what it is given."""

    def __init__(self, model: nn.Module, curvature: Curvature) -> None:
        self.curvature, self.state = curvature, {}
        self.param_groups = [{"params": list(model.parameters())}]
        self.found: list[Tensor] = []

    def update_curvature(self, estimates: dict[Tensor, Tensor]) -> None:
        params = self.param_groups[0]["params"]
        self.found.append(torch.cat([estimates[p].flatten().clone() for p in params if p in estimates]))


def estimate(model: nn.Module, curvature: Curvature, *batches: Any, seed: int = 0, **options: Any) -> Tensor:
    """The one before the first step, all parameters in one vector."""
    collector = Collector(model, curvature)
    CurvaturePass(model, collector, seed=seed, **options).update(*batches)
    (found,) = collector.found
    return found


class Table(nn.Module):
    """Logits (B, T, V) that are a row of weights for every token, so that the curvature has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(V, V, generator=torch.Generator().manual_seed(2)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight[inputs]


@BOTH
def test_it_is_unbiased_for_the_mean_over_the_targets_that_count(estimator: Callable[..., Curvature]) -> None:
    """Of micro-batches of unequal size and length: the diagonal for row i is the mean of [input = i] p (1 - p)."""
    tokens = torch.randint(0, V, (2, 5, 6), generator=torch.Generator().manual_seed(3))
    inputs, targets = tokens
    targets[0, 2:], targets[4, :4] = -100, -1
    batches = [(inputs[:3], targets[:3]), (inputs[3:, :5], targets[3:, :5])]
    model, n, exact = Table(), 0, torch.zeros(V, V)
    for each in batches:
        for token in each[0][each[1] >= 0]:
            p = model.weight[token].detach().softmax(-1)
            exact[token] += p * (1 - p)
            n += 1
    found = torch.stack([estimate(model, estimator(fraction=1), *batches, seed=seed) for seed in range(400)])
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact.flatten() / n).abs() <= 4.5 * error + 1e-7).all()
    assert error.norm() < 0.2 * exact.norm() / n


def tokens(rows: int = 4, length: int = 6) -> Tensor:
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(rows + length))


@BOTH
@pytest.mark.parametrize("sequences", [None, 3, 4])
def test_it_is_the_pass_of_train_py(estimator: Callable[..., Curvature], sequences: int | None) -> None:
    torch.manual_seed(0)
    model = GPT(vocab_size=V, n_layer=1, n_head=1, n_embd=4, block_size=5, vocab_multiple=1)
    inputs, targets = tokens()[:, :-1], tokens()[:, 1:]
    curvature, strategy = (
        estimator(sequences=sequences),
        Single(device=torch.device("cpu"), precision="fp32", compiled=False),
    )
    expected = Collector(model, curvature)
    strategy.prepare(model)
    curvature.bind(expected, model.parameters(), seed=7, global_batch=4)
    halves = [Batch(inputs[i : i + 2], targets[i : i + 2], range(i, i + 2)) for i in (0, 2)]
    curvature.update(0, halves, strategy.forward_backward)
    found = estimate(model, estimator(sequences=sequences), *((b.inputs, b.targets) for b in halves), seed=7)
    assert torch.equal(found, expected.found[0])


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=V, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config)


@BOTH
def test_a_mapping_with_labels_is_the_pair_of_inputs_and_the_next_labels(estimator: Callable[..., Curvature]) -> None:
    labels = tokens()
    labels[1, 3:] = -100
    batch = {"input_ids": tokens(), "labels": labels, "use_cache": False, "num_items_in_batch": torch.tensor(9)}
    pair = (tokens()[:, :-1], labels[:, 1:])
    torch.testing.assert_close(
        estimate(gpt2(), estimator(fraction=1), batch), estimate(gpt2(), estimator(fraction=1), pair)
    )
    everything = estimate(gpt2(), estimator(fraction=1), {"input_ids": tokens()})
    assert torch.equal(everything, estimate(gpt2(), estimator(fraction=1), {"input_ids": tokens(), "labels": tokens()}))
    assert not torch.allclose(everything, estimate(gpt2(), estimator(fraction=1), batch))


@BOTH
def test_shorter_micro_batches_are_padded_as_a_collator_would(estimator: Callable[..., Curvature]) -> None:
    short, long = tokens(2, 4), tokens(2, 7)
    padded = torch.cat([F.pad(short, (0, 3)), long])
    mask = torch.cat([F.pad(torch.ones_like(short), (0, 3)), torch.ones_like(long)])
    together = {"input_ids": padded, "attention_mask": mask, "labels": padded.masked_fill(mask == 0, -100)}
    apart = [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in (short, long)]
    found = estimate(gpt2(), estimator(fraction=1), *apart)
    torch.testing.assert_close(found, estimate(gpt2(), estimator(fraction=1), together), rtol=1e-4, atol=1e-7)


RETURNS: dict[str, Callable[[Tensor], Any]] = {
    "attribute": lambda logits: CausalLMOutput(logits=logits),
    "mapping": lambda logits: {"loss": None, "logits": logits},
    "tuple": lambda logits: (logits, None),
}


class Returning(Table):
    """As Table, in another form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, inputs: Tensor) -> Any:
        return self.form(super().forward(inputs))


@pytest.mark.parametrize("form", RETURNS)
def test_logits_are_found_in_what_the_model_returns(form: str) -> None:
    pair = (tokens(), tokens())
    found = estimate(Returning(RETURNS[form]), GaussNewtonBartlett(), pair)
    assert torch.equal(found, estimate(Table(), GaussNewtonBartlett(), pair))


class LikeNanoGPT(Table):
    """Returns logits and loss, without targets those of the last position alone."""

    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Any:
        logits = super().forward(inputs)
        return (logits[:, [-1]], None) if targets is None else (logits, torch.zeros(()))


def test_a_model_that_wants_targets_is_called_as_the_user_says() -> None:
    pair = (tokens(), tokens())
    with pytest.raises(
        ValueError, match=r"returned logits \(2, 1, 5\) for targets \(2, 6\).* give logits=lambda model"
    ):
        estimate(LikeNanoGPT(), GaussNewtonBartlett(), pair)
    found = estimate(LikeNanoGPT(), GaussNewtonBartlett(), pair, logits=lambda model, x, y: model(x, y)[0])
    assert torch.equal(found, estimate(Table(), GaussNewtonBartlett(), pair))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (tokens(), r"a pair of tensors .* a mapping with input_ids and labels \(B, T\); got a tensor \(4, 6\)"),
        ((tokens(), tokens()[0]), r"got a tuple of a tensor \(4, 6\), a tensor \(6,\)"),
        ({"x": tokens()}, r"got a mapping of x \(a tensor \(4, 6\)\)"),
        (7, "got a int"),
    ],
)
def test_a_batch_of_another_form_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(Table(), GaussNewtonBartlett(), batch)


def test_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"update\(\) got no batch; give it those of the coming step, update\(batch\)"):
        estimate(Table(), GaussNewtonBartlett())


def test_a_model_without_logits_is_refused() -> None:
    with pytest.raises(ValueError, match="the model returned a mapping of loss .*, and no logits: give logits="):
        estimate(Returning(lambda logits: {"loss": logits.sum()}), GaussNewtonBartlett(), (tokens(), tokens()))


def test_an_optimizer_without_curvature_is_refused_and_a_wrapped_one_unwrapped() -> None:
    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

    model = Table()
    with pytest.raises(ValueError, match="CurvaturePass: AdamW takes no estimates of the curvature; make it as Sophia"):
        CurvaturePass(model, Wrapper(torch.optim.AdamW(model.parameters())))
    sophia = Sophia(model.parameters(), curvature=GaussNewtonBartlett())
    CurvaturePass(model, Wrapper(Wrapper(sophia))).update((tokens(), tokens()))
    assert sophia.param_groups[0]["curvature_updates"] == 1


def test_gradients_are_left_as_they_are() -> None:
    model = gpt2()
    model({"input_ids": tokens()}["input_ids"], labels=tokens()).loss.backward()
    model.transformer.wpe.weight.grad = None
    before = {name: (param.grad, copy.deepcopy(param.grad)) for name, param in model.named_parameters()}
    estimate(model, GaussNewtonBartlett(), {"input_ids": tokens()})
    for name, param in model.named_parameters():
        same, values = before[name]
        assert param.grad is same and (values is None or torch.equal(param.grad, values)), name


def follow(model: nn.Module, optimizer: Sophia, steps: Sequence[int]) -> None:
    """Some steps as a user of micro-batches takes them, calling update before each."""
    curvature = CurvaturePass(model, optimizer, seed=3)
    for step in steps:
        for micro_batch in range(2):
            inputs, targets = torch.randint(
                V, (2, 4, 6), generator=torch.Generator().manual_seed(9 * step + micro_batch)
            )
            curvature.update((inputs, targets))
            F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_optimizers_state_alone_says_what_is_due() -> None:
    """One estimate for every third step, however many micro-batches; a resumed loop goes on as if it had not ended."""
    straight, first = Table(), Table()
    optimizers = [
        Sophia(each.parameters(), lr=0.1, curvature=GaussNewtonBartlett(every=3)) for each in (straight, first)
    ]
    follow(straight, optimizers[0], range(7))
    assert optimizers[0].param_groups[0]["curvature_updates"] == 3
    follow(first, optimizers[1], range(4))
    second = copy.deepcopy(first)
    resumed = Sophia(second.parameters(), lr=0.1, curvature=GaussNewtonBartlett(every=3))
    resumed.load_state_dict(optimizers[1].state_dict())
    follow(second, resumed, range(4, 7))
    assert torch.equal(second.weight, straight.weight)


def test_a_batch_of_which_nothing_counts_is_a_skipped_estimate() -> None:
    model = Table()
    sophia = Sophia(model.parameters(), curvature=GaussNewtonBartlett())
    CurvaturePass(model, sophia).update((tokens(), tokens().fill_(-100)))
    assert sophia.diagnostics()["skipped_estimates"] == 1


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("placement", ["ddp", "fsdp2"])
def test_ranks_estimate_what_one_process_does_also_from_batches_of_unequal_length(placement: str) -> None:
    expected = ranks.curvature_pass("single")
    for found in world.run(2, ranks.curvature_pass, placement):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.xdist_group("ranks")
def test_ranks_with_unequal_numbers_of_sequences_are_told() -> None:
    for rank, said in enumerate(world.run(2, ranks.unequal_sequences)):
        assert f"ranks gave 2 to 3 sequences, and this one {rank + 2}; give as many on every rank" in said


def test_the_callback_answers_every_event_of_trainer() -> None:
    events = [name for name in dir(TrainerCallback) if name.startswith("on_")]
    model = gpt2()
    sophia = Sophia(model.parameters(), curvature=GaussNewtonBartlett())
    handler = CallbackHandler([CurvatureCallback()], model, None, sophia, None)
    handler.call_event("on_train_begin", None, TrainerState(), TrainerControl())
    for event in sorted({*events} - {"on_pre_optimizer_step"}):  # on_train_begin comes again
        handler.call_event(event, None, TrainerState(), TrainerControl())
    with pytest.raises(AttributeError, match="CurvatureCallback has no step"):
        CurvatureCallback().step  # noqa: B018  # what is tested


def test_a_loop_with_sophia_has_at_most_three_lines_more_than_one_with_adamw() -> None:
    lines = {}
    for function in ast.parse((RECIPES / "plain_torch.py").read_text("utf-8")).body:
        if isinstance(function, ast.FunctionDef) and function.name.startswith("train_with_"):
            lines[function.name] = ast.unparse(function).count("\n")
    assert 0 < lines["train_with_sophia"] - lines["train_with_adamw"] <= 3
    assert lines["train_with_soap"] == lines["train_with_adamw"]

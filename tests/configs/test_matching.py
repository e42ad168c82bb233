"""Which runs a filter means."""

from pathlib import Path
from typing import Any

import pytest

from configs import FOLDER, ConfigError, compose, flat
from configs.matching import check_key, matches, wanted
from configs.runs import plain
from tests.configs.test_compose import MANDATORY


def is_meant(overrides: list[str], *filters: str) -> bool:
    config: dict[str, Any] = plain(compose(overrides))
    return matches(config, flat(config), wanted(filters))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(FOLDER) / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("filters", "answer"),
    [
        (["optim.lr=1e-3"], True),
        (["optim.lr=0.001"], True),
        (["optim.lr=2e-3"], False),
        (["optim.lr=2e-3,1e-3"], True),
        (["optim.lr=1e-3", "seed=8"], False),
        (["optim.lr=1e-3", "optim.lr=5e-3"], True),
        (["optim.betas=[0.9,0.95]"], True),
        (["optim.fused=true"], True),
        (["optim.fused=1"], False),
        (["optim._target_=torch.optim.AdamW"], True),
        (["save_at=null"], True),
        (["device=cpu"], True),
        (["seed=range(7,9)"], True),
    ],
)
def test_a_value_is_compared_as_it_is_typed_for_train_py(filters: list[str], answer: bool) -> None:
    assert is_meant(["optim.lr=1e-3", "seed=7", "device=cpu"], *filters) is answer


@pytest.mark.parametrize(
    ("overrides", "option", "answer"),
    [
        (["optim=soap", "optim.roles.matrix.lr=1e-3", "optim.roles.rest.lr=1e-3"], "optim=soap", True),
        (["optim=soap"], "optim=adamw", False),
        (["optim=soap"], "optim=adamw,soap", True),
        (["optim._target_=torch.optim.RAdam", "~optim.fused"], "optim=adamw", False),
        (["model=nano", "model.n_layer=5"], "model=nano", True),
        (["model=nano", "model.n_layer=5"], "model=micro", False),
        (["data=synthetic", "data/tokenizer=bpe"], "data=synthetic", True),
        (["data=synthetic", "data/tokenizer=bpe"], "data/tokenizer=bpe", True),
        (["data=synthetic"], "data/tokenizer=bpe", False),
        (["logging=[jsonl,tensorboard]"], "logging=tensorboard", True),
    ],
)
def test_an_option_means_its_classes_and_the_nearest_settings(overrides: list[str], option: str, answer: bool) -> None:
    assert is_meant(overrides, option) is answer


@pytest.mark.slow  # composes every option
@pytest.mark.parametrize("group", ["optim", "model", "schedule", "parallel", "data/tokenizer"])
def test_a_run_of_an_option_is_found_by_it_and_by_no_other(group: str) -> None:
    names = options(group)
    for name in names:
        overrides = [f"{group}={name}", *MANDATORY.get(f"{group}={name}", [])]
        assert [other for other in names if is_meant(overrides, f"{group}={other}")] == [name]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["optim=sopa"], "optim=sopa does not exist; the nearest valid one is 'soap'"),
        (["~seed"], "is no filter"),
        (["+seed=1"], "is no filter"),
        (["seed=interval(1,2)"], "lists no values"),
    ],
)
def test_what_is_no_filter_is_refused(filters: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
        wanted(filters)


def test_a_key_that_no_run_has_names_the_nearest() -> None:
    known = list(flat(compose([])))
    check_key("optim.lr", known)
    for key, nearest in (("optim.rl", "optim.lr"), ("n_layer", "model.n_layer")):
        with pytest.raises(ConfigError, match=f"none of the runs has the key {key!r}.*'{nearest}'"):
            check_key(key, known)

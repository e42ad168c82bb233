"""Texts are taken as typed, and what cannot be is said with the quotes to paste."""

import shlex
from pathlib import Path

import pytest

from configs import ConfigError, compose, expand, flat
from configs.groups import options_of
from configs.overrides import MOST_JOBS, value, written

PROMPTS = [
    *("", " ", "class ", "def f(x):", "@property", "# include", "{", "[1]", "007", "1e3", "123", "null", "true", "no"),
    *("a: b", "*args", "x #y", "line\nline", "${x}", "\\${x}\\", "${oc.env:HOME}", '"""Doc', '"quoted"', "'quoted'"),
    *("a, b", "a=b", "$HOME", "~", "<|endoftext|>", "模型", "???", "range(1,3)", "\x1b[1m", " x "),
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_taken_as_typed_and_so_written_to_config_yaml(prompt: str) -> None:
    config = compose([f"data.prompt={prompt}"])
    assert config.data.prompt == prompt
    assert config.data.prompt == prompt


@pytest.mark.parametrize(
    ("typed", "folder"),
    [
        *[
            (text, text)
            for text in ("runs/lr=1e-3", "runs/模型", "runs/a#1", "runs/a(2)", "runs/a b", "007", "1e3", "a,b")
        ],
        *[(text, text) for text in ("[x]", "true", "a'b", "a\\b", "{a: 1}", "range(1,2)", "a:b", "x{", "${", "a$")],
        ("~/runs/a", "/home/me/runs/a"),
        ('"~/runs/a"', "/home/me/runs/a"),
        ("'runs/a,b'", "runs/a,b"),
        ("$HOME/a", "/home/me/a"),
        ("${HOME}/a", "/home/me/a"),
        ("'$HOME/a'", "/home/me/a"),
        ("runs/${seed}-${optim.lr}", "runs/1337-0.002"),
    ],
)
def test_a_path_is_taken_as_typed_with_home_and_variables_replaced(
    monkeypatch: pytest.MonkeyPatch, typed: str, folder: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for key in ("run_dir", "data.root"):
        assert flat(compose([f"{key}={typed}"]))[key] == folder


def test_a_path_in_a_file_is_expanded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert compose(["data.root=${oc.env:SCRATCH}/x"]).data.root == "/scratch/x"
    assert compose(["run_dir=null"]).run_dir == compose([]).run_dir


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["data=files", "data.source.pattern=corpus/[0-9]*.txt"], "data.source.pattern", "corpus/[0-9]*.txt"),
        (["data=files", "data.source.pattern=~/{a,b}/*.txt"], "data.source.pattern", "~/{a,b}/*.txt"),
        (["data=files", "data.source.pattern='a/*.txt'"], "data.source.pattern", "a/*.txt"),
        (["data=files", "data.source.pattern=${HOME}/x"], "data.source.pattern", "${HOME}/x"),  # data replaces it
        (["data=files", "data.source.pattern=null"], "data.source.pattern", "null"),
        (["data=openwebtext", "data.source.folder=null"], "data.source.folder", None),
        (["data=openwebtext", "data.source.folder=/a #b"], "data.source.folder", "/a #b"),
        (["data=openwebtext", "data.tokenizer.vocab_dir=/a=b"], "data.tokenizer.vocab_dir", "/a=b"),
        (["data=files", "data.source.pattern=x", "data.source.text=7"], "data.source.text", "7"),
        (["logging=wandb", "logging.wandb.project=a (b)"], "logging.wandb.project", "a (b)"),
        (["logging=wandb", "logging.wandb.close_seconds=3"], "logging.wandb.close_seconds", 3),
        (["data.source.megabytes=null"], "data.source.megabytes", None),
        (["compile=true"], "compile", "true"),
        (["optim=adamw_ours", "optim.execution=1"], "optim.execution", "1"),
    ],
)
def test_texts_of_data_and_logging_are_taken_as_typed_and_numbers_stay_numbers(
    overrides: list[str], key: str, value: object
) -> None:
    found = flat(compose(overrides)).get(key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("value", ["a(b)", "a#b", "a=b", "it's", 'say "x"', "ü", "{", "a,", "`", "a b(c)"])
def test_where_hydras_grammar_refuses_the_message_shows_what_to_paste(value: str) -> None:
    base = ["optim=adamw_ours"]
    with pytest.raises(ConfigError, match="to give it as a text, quote it: ") as caught:
        compose([*base, f"optim.execution={value}"])
    (pasted,) = shlex.split(str(caught.value).rpartition("quote it: ")[2])
    assert compose([*base, pasted]).optim["execution"] == value


def test_a_sweep_is_the_product_of_lists_and_ranges() -> None:
    assert expand(["seed=1,2", "max_steps=range(3)"]) == [
        [f"seed={seed}", f"max_steps={steps}"] for seed in (1, 2) for steps in (0, 1, 2)
    ]
    assert expand(["run_dir=a,b"]) == [["run_dir=a"], ["run_dir=b"]]
    assert expand(["optim.lr=1e-3,2e-3", "run_dir=runs/${optim.lr}"]) == [
        [f"optim.lr={lr}", "run_dir=runs/${optim.lr}"] for lr in ("0.001", "0.002")
    ]


def test_hydras_functions_list_the_values_of_a_sweep() -> None:
    def values(override: str) -> list[str]:
        return [each.partition("=")[2] for (each,) in expand([override])]

    assert values("seed=choice(3,1,2)") == ["3", "1", "2"]
    assert values("seed=sort(3,1,2)") == ["1", "2", "3"]
    assert sorted(values("seed=shuffle(range(1,9))")) == list("12345678")
    assert values("model=glob([nano,gpt*],exclude=gpt2_*)") == ["nano"]
    assert values("optim=glob(*,exclude=soap*)") == [each for each in options_of("optim") if "soap" not in each]
    assert values("data/tokenizer=glob(gpt*)") == ["gpt2"]


def test_a_glob_without_m_is_told_that_it_names_several() -> None:
    with pytest.raises(ConfigError, match=r"optim=glob\(\*\) names several options; add -m to run each, or choose one"):
        compose(["optim=glob(*)"])


@pytest.mark.parametrize(
    "override",
    ["data.prompt=a, b", "data.prompt=range(1,2)", "run_dir=a#b", "data.source.pattern=[ab]*.txt", "~optim.fused"],
)
def test_a_text_is_no_sweep(override: str) -> None:
    assert expand([override]) == [[override]]


def test_quoted_values_of_a_sweep_keep_their_commas(tmp_path: Path) -> None:
    jobs = expand(['run_dir="a,b","c d"'])
    assert [compose(job).run_dir for job in jobs] == ["a,b", "c d"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=interval(0,1)", "lists no values; write them out, optim.lr=a,b, or let search=optuna choose them"),
        ("optim.lr=glob(*)", "optim.lr=glob(*): glob(...) lists a group's options; optim.lr is no group"),
        ("model=glob(giant*)", "model=glob(giant*) matches no option (all: "),
        ("seed=range(5,5)", "seed=range(5,5) gives no values"),
        ("seed=range(0,5,-1)", "gives no values"),
        ("seed=range(0,5,0)", "gives no values"),
        ("seed=range(0,1000000000000)", f"more than {MOST_JOBS:,} runs"),
        ("seed=range(0,inf)", f"more than {MOST_JOBS:,} runs"),
        ("run_dir=runs/lr=1,runs/lr=2", "to give it as one text, quote it: 'run_dir=\"runs/lr=1,runs/lr=2\"'"),
        ("optim.lr=1,", "optim.lr=1, cannot be read"),
    ],
)
def test_a_sweep_whose_values_cannot_be_listed_gets_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(["seed=1", override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        *(1e-05, 0.1 + 0.2, 1 / 3, 5e-324, 1e22, -0.0, 3.0, 7, None, True),
        *("adamw", "007", "a, b", "", 'say "x"', "true", "x: y"),
        *([0.9, 0.95], ["a,b", None], {"matrix": {"lr": 1e-05}}, [], {}),
    ],
)
def test_a_value_is_written_so_that_the_grammar_reads_the_same_value(given: object) -> None:
    assert repr(value("key", written(given))) == repr(given)

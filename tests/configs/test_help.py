"""What --help lists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import FOLDER, GROUPS, ConfigError, compose, flat, run_help
from configs.door import INSTEAD, _asked
from configs.schema import default_of, rules
from scripts import doctor, prepare_data

ROOT = Path(__file__).parents[2]


def keys_in(text: str) -> list[str]:
    return re.findall(r"^  ([\w.]+)=", text, re.M)


def test_every_group_option_and_key_is_listed_with_its_meaning() -> None:
    text = run_help("Doc.", [])
    for group in GROUPS:
        for option in (FOLDER / group).glob("*.yaml"):
            assert re.search(rf"\b{option.stem}\b", text), option
    for name, field, rule in rules():
        if "." not in name and default_of(field) != "???":
            (line,) = re.findall(rf"^  {name}=.*$", text, re.M)
            assert rule.meaning in line
            assert all(choice in line for choice in rule.choices)


def test_the_default_option_comes_first() -> None:
    found = dict(re.findall(r"^  (model|data|data/tokenizer|optim|logging) +(\w+)", run_help("Doc.", []), re.M))
    assert found == {"model": "nano", "data": "pysource", "data/tokenizer": "bpe", "optim": "adamw", "logging": "jsonl"}


@pytest.mark.parametrize(
    "choice", ["optim=soap", "optim=sophiag", "data=files", "data/tokenizer=bpe", "model=llama_nano"]
)
def test_the_keys_of_an_option_are_those_of_the_configuration(choice: str) -> None:
    place = choice.partition("=")[0].replace("/", ".")
    listed = keys_in(run_help("Doc.", [choice]).partition("Keys of ")[2])
    overrides = [choice, "data.source.pattern=x"] if choice == "data=files" else [choice]
    assert sorted(listed) == sorted(key for key in flat(compose(overrides)) if key.startswith(f"{place}."))


def test_an_option_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match="optim=sap does not exist; the nearest valid one is 'soap'"):
        run_help("Doc.", ["optim=sap"])


def test_prepare_data_lists_what_is_of_data() -> None:
    shown = subprocess.run(
        [sys.executable, str(ROOT / "scripts/prepare_data.py"), "--help", "data=openwebtext"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.startswith((prepare_data.__doc__ or "").splitlines()[0])
    assert "data.source.limit_documents" in shown and "max_steps" not in shown and "soap" not in shown


def test_doctor_lists_the_overrides_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--help"]) == 0
    assert "max_steps=250" in capsys.readouterr().out


@pytest.mark.parametrize("flag", [flag for flags in INSTEAD for flag in flags])
def test_hydras_flags_that_are_none_here_say_what_to_do(flag: str) -> None:
    for arguments in ([flag, "x"], [f"{flag}=x"]):
        with pytest.raises(ConfigError, match=f"{flag} is no option of this command: "):
            _asked(arguments)


@pytest.mark.parametrize(
    "arguments", [["--cfg"], ["--cfg", "job"], ["--cfg=job"], ["seed=1", "--cfg", "job", "seed=2"]]
)
def test_cfg_takes_job_as_hydras_does(arguments: list[str]) -> None:
    asked = _asked(arguments)
    assert asked.cfg and asked.overrides == [each for each in arguments if "=" in each and not each.startswith("-")]


def test_hydras_own_configuration_is_not_there() -> None:
    with pytest.raises(ConfigError, match="--cfg hydra: Hydra's own configuration is not used; --cfg job shows"):
        _asked(["--cfg", "hydra"])
    with pytest.raises(ConfigError, match="hydra.run.dir.*: Hydra's own settings are not used; run_dir="):
        compose(["hydra.run.dir=x"])


def test_the_keys_of_a_commands_option_stand_beside_what_its_file_says() -> None:
    shown = run_help("", ["launch=local"])
    assert "Keys of launch=local:\n  launch.at_once=1  runs at a time; null: as many as there are" in shown
    assert "  search.trials=20           in all, over every worker and call\n" in run_help("", ["search=optuna"])

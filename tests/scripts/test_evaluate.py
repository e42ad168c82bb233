import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from remains import result

import train
from assembly.data import data_path
from configs import compose
from data import load_tokenizer
from scripts import compare, evaluate, prepare_data
from tests.evaluation.test_hellaswag import ROWS


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a"
    assert train.main(compose([*tiny, f"run_dir={folder}", "max_steps=3"])) == 0
    return folder


@pytest.fixture
def trained(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, for evaluations of its own."""
    return shutil.copytree(run, tmp_path / "a")


def found(folder: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((folder / "evaluation.json").read_text())["evaluations"]
    return content


def test_the_runs_own_sequences_have_the_runs_own_loss(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"run={trained}", "sequences=6"]) == 0
    (evaluation,) = found(trained)
    numbers, expected = evaluation["numbers"], result(trained)
    assert (evaluation["what"], evaluation["step"]) == ("text", 3)
    assert numbers["nats_per_token"] == pytest.approx(expected["val/loss"], rel=1e-6)
    assert numbers["bits_per_byte"] == pytest.approx(expected["val/bits_per_byte"], rel=1e-6)
    assert numbers["perplexity"] == pytest.approx(math.exp(expected["val/loss"]), rel=1e-6)
    assert f"nats_per_token  {expected['val/loss']:.4f}" in capsys.readouterr().out


def test_the_whole_split_is_as_many_bytes_as_its_text(trained: Path, tiny: list[str]) -> None:
    assert evaluate.main([f"run={trained}"]) == 0
    numbers = found(trained)[0]["numbers"]
    folder = data_path(compose(tiny))
    val = json.loads((folder / "dataset.json").read_text())["splits"]["val"]
    ids = b"".join((folder / shard["file"]).read_bytes() for shard in val["shards"])
    tokens = memoryview(ids).cast("H").tolist()
    tokenizer = load_tokenizer(folder)
    assert numbers["tokens"] == len(tokens) - 1 == val["n_tokens"] - 1
    documents = tokenizer.decode(tokens[1:]).replace("<|endoftext|>", "")  # the first token is not predicted
    assert numbers["bytes"] == len(documents.encode())


def test_text_files_are_evaluated_on_all_of_them(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("How many bytes are in this? ü")
    (tmp_path / "c.jsonl").write_text('{"body": "abc"}\n{"body": "de"}\n')
    assert evaluate.main([f"run={trained}", f"data={tmp_path}/*.txt"]) == 0
    assert evaluate.main([f"run={trained}", f"data={tmp_path}/c.jsonl", "text=body"]) == 0
    assert [each["numbers"]["bytes"] for each in found(trained)] == [30, 5]
    assert [each["on"] for each in found(trained)] == [f"{tmp_path}/*.txt", f"{tmp_path}/c.jsonl"]


def test_a_data_set_is_named_by_its_folder_or_its_option(trained: Path, tiny: list[str], data_root: Path) -> None:
    folder = data_path(compose(tiny))
    for data in ([f"data={folder}"], ["data=synthetic", f"data.root={data_root}"], []):
        assert evaluate.main([f"run={trained}", "sequences=6", *data]) == 0
        (evaluation,) = found(trained)  # the same evaluation takes the place of the one before
        assert evaluation["numbers"]["nats_per_token"] == pytest.approx(result(trained)["val/loss"], rel=1e-6)


def test_hellaswag_joins_the_run_and_the_comparison(
    trained: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hellaswag_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for style in ("lm-eval", "llm.c"):
        arguments = [f"run={trained}@3", f"hellaswag={tmp_path}/hellaswag_val.jsonl", f"style={style}"]
        assert evaluate.main(arguments) == 0
    assert [each["settings"]["style"] for each in found(trained)] == ["lm-eval", "llm.c"]
    assert {each["numbers"]["questions"] for each in found(trained)} == {2}
    results = compare.compare([trained, run])
    assert results.tables[1].columns[3:5] == ["val/loss", "bits per byte"]
    table = results.tables[-1]
    assert table.title == "Evaluations" and table.columns[5:8] == ["acc", "acc norm", "acc stderr"]
    assert [row[:2] for row in table.rows] == [["hellaswag", "hellaswag_val.jsonl"]] * 2
    assert {row[5] for row in table.rows} == {f"{each['numbers']['acc']:.4f}" for each in found(trained)}


def test_tasks_of_the_harness_join_the_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def harness(folder: Path, tasks: list[str], **settings: Any) -> dict[str, float | None]:
        asked.append((folder, tasks, settings))
        return {"piqa/acc": 0.6, "arc_easy/acc": 0.4}

    monkeypatch.setattr(evaluate, "harness", harness)
    assert evaluate.main([f"run={trained}", "tasks=piqa, arc_easy", f"export={tmp_path}", "limit=5", "device=cpu"]) == 0
    assert asked == [(tmp_path, ["piqa", "arc_easy"], {"limit": 5, "micro_batch": 8, "device": "cpu"})]
    (evaluation,) = found(trained)
    assert (evaluation["what"], evaluation["on"]) == ("lm-eval", "piqa,arc_easy")
    assert evaluation["numbers"] == {"piqa/acc": 0.6, "arc_easy/acc": 0.4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda run: [], "run=<run directory> is missing"),
        (lambda run: [f"run={run}@7"], "has no checkpoint of step 7; it has those of steps 3"),
        (lambda run: [f"run={run}", "data=nothing/*.txt"], "data=nothing/*.txt matches no text file, and is neither"),
        (lambda run: [f"run={run}", "data.root=x"], "data.root=x is for data=<an option of the group data>"),
        (lambda run: [f"run={run}", "data=synthetic", "data.root=x"], "data set x/synthetic-"),
        (lambda run: [f"run={run}", "tasks=hellaswag"], "tasks= and export= go together"),
        (lambda run: [f"run={run}", "style=mine"], "style=mine must be one of lm-eval, llm.c"),
        (lambda run: [f"run={run}", "sequences=0"], "sequences=0 must be >= 1"),
        (lambda run: [f"run={run}", "sequences=many"], "sequences=many must be a whole number"),
        (lambda run: [f"run={run}", "hellaswag=nothing"], "hellaswag=nothing does not exist"),
        (lambda run: [f"run={run}", "hellasweg=x"], "unknown key 'hellasweg'; the nearest valid one is 'hellaswag'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments: Callable[[Path], list[str]], message: str
) -> None:
    assert evaluate.main(arguments(trained)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and len(printed.splitlines()) == 1
    assert not (trained / "evaluation.json").exists()


def test_data_of_another_tokenizer_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("a b c " * 100)
    overrides = ["data=files", f"data.source.pattern={tmp_path}/text.txt", f"data.root={tmp_path}"]
    for tokenizer, status in ((["data/tokenizer=bytes"], 0), (["data.tokenizer.vocab_size=258"], 2)):
        assert prepare_data.main([*overrides, *tokenizer]) == 0
        assert evaluate.main([f"run={trained}", *overrides, *tokenizer]) == status
    assert "was encoded by another tokenizer than the run's; give the text itself" in capsys.readouterr().err


def test_data_that_have_changed_since_the_run_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = json.loads((trained / "env.json").read_text())
    environment["data"]["val"] = "0" * 64
    (trained / "env.json").write_text(json.dumps(environment))
    assert evaluate.main([f"run={trained}"]) == 2
    assert "is not what the run was validated on" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[1]", '{"evaluations": 1}', '{"evaluations": [{"what": 1}]}'])
def test_a_damaged_evaluation_json_is_one_line_and_stays(
    trained: Path, run: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (trained / "evaluation.json").write_text(content)
    for command, arguments in ((evaluate, [f"run={trained}"]), (compare, [str(trained), str(run)])):
        assert command.main(arguments) == 2
        printed = capsys.readouterr().err
        assert str(trained / "evaluation.json") in printed and len(printed.splitlines()) == 1
    assert (trained / "evaluation.json").read_text() == content


def test_a_source_of_somebody_else_is_not_looked_at(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.load(trained / "config.yaml")
    config.data.source = {"_target_": "no.such.Thing"}
    OmegaConf.save(config, trained / "config.yaml")
    assert evaluate.main([f"run={trained}"]) == 2
    assert "data.source is no class of ours; name the data set by data=<its folder>" in capsys.readouterr().err

import json
import re
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

import train
from configs import as_yaml, compose
from files.lock import Lock
from launch import pruning
from scripts import evaluate, runs
from scripts.serving import LiveRuns, server
from trainer.profiling import TABLE, TRACE

Write = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A run directory below runs/ of the working directory, as of train.py: name, status, overrides."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, status: str = "finished", *overrides: str, loss: float = 4.0) -> Path:
        folder = tmp_path / "runs" / name
        (folder / "checkpoints" / "step_000100").mkdir(parents=True)
        (folder / "checkpoints" / "step_000100" / "shard").write_bytes(bytes(1 << 20))
        (folder / "config.yaml").write_text(as_yaml(compose([*overrides, f"run_dir={folder}"])))
        (folder / "env.json").write_text("{}")
        rows = [{"step": n, "tokens": n, "seconds": n, "flops": n, "val/loss": loss + 1 - n / 100} for n in (0, 100)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if status:
            result = {"status": status, "step": 100, "val/loss": loss if status == "finished" else None}
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return write


def listed(printed: str) -> list[str]:
    """The first word of every row of the table."""
    return [line.split()[0] for line in printed.splitlines()[3:] if line.strip()]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_runs_are_listed_filtered_and_sorted(write_run: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write_run("a", "finished", "optim=soap", loss=3.0)
    write_run("b", "diverged", "optim.lr=1e-3")
    write_run("c", "", "optim.lr=5e-3", "max_steps=700")
    for arguments, names in (
        (["sort=name"], ["a", "b", "c"]),
        (["sort=-name"], ["c", "b", "a"]),
        (["optim=soap"], ["a"]),
        (["optim=adamw", "sort=-optim.lr"], ["c", "b"]),
        (["state=diverged,unfinished", "sort=name"], ["b", "c"]),
        (["runs/a"], ["a"]),
        (["sort=val/loss", "state=finished,unfinished"], ["a", "c"]),
    ):
        assert runs.main(arguments) == 0
        assert listed(capsys.readouterr().out) == names, arguments
    runs.main(["runs/c", "sort=optim.lr"])
    printed = capsys.readouterr().out
    assert "100/700" in printed and "unfinished" in printed and "0.005" in printed  # the key it was sorted by


def test_no_run_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs.main([]) == 0
    assert capsys.readouterr().out == "no runs in runs\n"


def test_listing_changes_nothing_and_executes_nothing(write_run: Write, tmp_path: Path) -> None:
    folder = write_run("a")
    target = f"_target_: psutil.Popen\nargs: [touch, {tmp_path / 'PWNED'}]\n".replace("\n", "\n    ")
    (folder / "config.yaml").write_text(f"max_steps: 5\ndata:\n  source:\n    {target}\n")
    write_run("b", "diverged")
    before = contents(tmp_path)
    assert runs.main([]) == 0
    assert runs.main(["prune=runs", "state=diverged"]) == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_of_80_columns_loses_no_number_and_no_name(
    write_run: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    name = "nano-pysource-adamw-s1337-1a2b3c4d"
    write_run(name, "", "max_steps=100000")
    monkeypatch.setattr(runs, "Console", partial(Console, width=width, force_terminal=True, no_color=True))
    assert runs.main([]) == 0
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for piece in ("unfinished", "100/100000", "4.0000", "s ago"):
        assert piece in text
    assert "…" not in text
    assert "".join(line[: lines[1].index("state")].strip() for line in lines[3:]) == name
    assert ("train/loss" in text) == (width > 100)


def test_a_prune_shows_what_it_would_delete_and_deletes_it_when_told(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = write_run("bad", "diverged"), write_run("good")
    bad.with_name("bad.log").write_text("its output")
    before = contents(tmp_path)
    assert runs.main(["prune=runs", "state=diverged"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"to delete +1\.0 MiB +runs/bad\b", printed) and "good" not in printed
    assert printed.splitlines()[-2:] == [
        "1.0 MiB in all; --delete deletes them",
        "note: runs that begin from one of these are looked for in runs alone",
    ]
    assert contents(tmp_path) == before
    assert runs.main(["prune=runs", "state=diverged", "--delete"]) == 0
    assert "deleted" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["good"]
    assert (good / "result.json").is_file()
    capsys.readouterr()
    assert runs.main(["prune=runs", "state=diverged", "--delete"]) == 0
    assert capsys.readouterr().out == "no runs like that in runs\n"


def test_pruned_checkpoints_leave_the_record_of_a_run_that_has_ended(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, stopped = write_run("ended"), write_run("stopped", "stopped")
    assert runs.main(["prune=checkpoints", "runs", "--delete"]) == 0
    assert "it is stopped, and continues from them" in capsys.readouterr().out
    assert {path.name for path in ended.iterdir()} == {
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "result.json",
        "lock",
    }
    assert (stopped / "checkpoints" / "step_000100" / "shard").is_file()
    assert runs.main(["prune=checkpoints", "runs/ended"]) == 0
    assert "it has none" in capsys.readouterr().out


def test_what_is_in_use_or_not_ours_stays(write_run: Write, capsys: pytest.CaptureFixture[str]) -> None:
    used, foreign = write_run("used", ""), write_run("foreign")
    (foreign / "env.json").unlink()
    lock = Lock(used / "lock")
    assert runs.main(["prune=runs", "runs", "--delete"]) == 0
    lock.release()
    printed = capsys.readouterr().out
    assert "it is running" in printed and "it has no env.json, so train.py has not made it" in printed
    assert (used / "config.yaml").is_file() and (foreign / "config.yaml").is_file()


def test_what_is_in_slurm_s_queue_is_shown_and_stays(
    write_run: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, job in (("queued", "12"), ("gone", "3")):
        run_dir = write_run(name, status="stopped")
        run_dir.with_name(f"{name}.slurm.json").write_text(json.dumps({"job": job}))
    (tmp_path / "squeue").write_text('#!/bin/sh\necho "12|PENDING|Priority|"')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for places in ([], ["runs/q*"], ["runs/queued"]):
        assert runs.main(places) == 0
        assert capsys.readouterr().out.endswith("\nruns/queued: job 12 pending (Priority)\n")
    assert runs.main(["prune=runs", "state=stopped", "--delete"]) == 0
    assert "runs/queued  it is in SLURM's queue\n" in capsys.readouterr().out
    assert sorted(path.name for path in Path("runs").iterdir()) == ["queued", "queued.slurm.json"]
    (tmp_path / "squeue").write_text("#!/bin/sh\necho busy >&2; exit 1")
    assert runs.main([]) == 0
    assert "note: which runs are queued is not known: launch=slurm: squeue says busy\n" in capsys.readouterr().out
    assert runs.main(["prune=runs", "state=stopped", "--delete"]) == 2
    assert Path("runs/queued").is_dir()


def test_what_no_run_makes_stays_and_so_does_a_folder_that_others_lie_in(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outer, noted, linked = write_run("outer"), write_run("noted"), write_run("linked")
    inner = write_run("outer/inner")
    (noted / "notes.txt").write_text("of the user")
    (linked / "checkpoints").rename(tmp_path / "elsewhere")
    (linked / "checkpoints").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    assert runs.main(["prune=runs", "runs/outer", "runs/noted", "--delete"]) == 0
    printed = capsys.readouterr().out
    assert "it holds 'inner', which no run makes" in printed and "it holds 'notes.txt'" in printed
    assert runs.main(["prune=checkpoints", "runs/linked", "--delete"]) == 0
    assert "they are a symbolic link" in capsys.readouterr().out
    assert contents(tmp_path) == before and (inner / "config.yaml").is_file() and outer.is_dir()


def test_all_that_a_run_writes_is_known_to_be_its_own(tiny: list[str], tmp_path: Path) -> None:
    logging = ["logging=[jsonl,tensorboard]", "timeout_seconds=100"]
    assert train.main(compose([*tiny, f"run_dir={tmp_path / 'a'}", "max_steps=4", *logging])) == 0
    assert evaluate.main([f"run={tmp_path / 'a'}", "device=cpu"]) == 0
    profile = {TRACE, TABLE}  # of profile=true, which takes fifteen steps
    assert {path.name for path in (tmp_path / "a").iterdir()} | profile <= pruning.OF_A_RUN


def test_a_trunk_stays_as_long_as_a_branch_needs_it(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, branch = write_run("trunk"), write_run("branch", "")
    (branch / "checkpoints" / "step_000100").rename(tmp_path / "elsewhere")
    for typed, where in ((str(trunk), "."), ("runs/trunk", "."), ("runs/trunk", "runs")):
        (branch / "env.json").write_text(json.dumps({"start_from": {"run": typed, "step": 100, "exact": True}}))
        monkeypatch.chdir(tmp_path / where)
        assert runs.main(["prune=runs", str(trunk), "--delete"]) == 0
        assert "stays" in (printed := capsys.readouterr().out) and "branch begins from it" in printed
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").rename(branch / "checkpoints" / "step_000100")
    assert runs.main(["prune=runs", "state=finished", "--delete"]) == 0
    assert not trunk.exists() and branch.is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune=all", "runs"], "prune=all must be runs or checkpoints"),
        (["prune=runs"], "prune=runs needs to know of which runs"),
        (["--delete"], "--delete deletes what prune= names"),
        (["--serv"], "--serv is no option"),
        (["port=x", "--serve"], "port=x must be a whole number"),
        (["nothing"], "nothing: there is no such folder"),
        (["optim.rl=1"], "none of the runs has the key 'optim.rl'; the nearest that there is, is 'optim.lr'"),
        (["otim=soap"], "none of the runs has the key 'otim'; the nearest that there is, is 'optim'"),
        (["state=finnished"], "state=finnished must be one of running, hung, finished, diverged, stopped, unfinished"),
        (["sort=los"], "none of the runs has the key 'los'"),
        (["optim=sopa"], "optim=sopa does not exist; the nearest valid one is 'soap'"),
    ],
)
def test_bad_input_gets_one_line(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_run("a")
    before = contents(tmp_path)
    assert runs.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}") and len(printed.splitlines()) == 1
    assert contents(tmp_path) == before


@pytest.fixture
def address(write_run: Write) -> Iterator[str]:
    """Where the live page of two runs is served."""
    write_run("a", "")
    write_run("b", "finished", "optim.lr=1e-3")
    served = server(live(), "127.0.0.1", 0, "runs in runs")
    thread = Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{served.server_address[1]}"
    served.shutdown()
    thread.join()
    served.server_close()


def live() -> LiveRuns:
    asked = runs.parse([])
    return LiveRuns(runs.chosen_by(asked), runs.columns_of(asked.filters, asked.sort), runs.row_of)


def read(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
        return answer.read().decode()


def test_the_served_page_has_the_runs_and_their_losses(address: str) -> None:
    page = read(address)
    assert "<title>runs in runs</title>" in page
    found: dict[str, Any] = json.loads(read(f"{address}/runs.json"))
    rows = sorted(row[:3] for row in found["rows"])
    assert rows == [["a", "unfinished", "100/250"], ["b", "finished", "100/250"]]
    assert {trace["name"]: trace["y"] for trace in found["figure"]["data"]} == {"a": [5.0, 4.0], "b": [5.0, 4.0]}
    assert [each["label"] for each in found["figure"]["x"]] == [
        "optimizer steps",
        "tokens",
        "seconds of training",
        "FLOPs",
    ]


def test_a_browser_that_closes_its_page_is_no_error(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as hasty:
        hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets
        hasty.sendall(b"GET / HTTP/1.1\r\n")
    read(address)
    assert capsys.readouterr().err == ""


def test_the_server_follows_the_runs_and_keeps_their_colours(address: str, write_run: Write) -> None:
    before: dict[str, Any] = json.loads(read(f"{address}/runs.json"))
    write_run("c", "")
    row = {"step": 200, "tokens": 2, "seconds": 2, "flops": 2, "val/loss": 3.5}
    with Path("runs/a/metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    after: dict[str, Any] = json.loads(read(f"{address}/runs.json"))
    assert sorted(row[0] for row in after["rows"]) == ["a", "b", "c"]
    traces = {trace["name"]: trace for trace in after["figure"]["data"]}
    assert traces["a"]["y"] == [5.0, 4.0, 3.5]
    slots = {trace["name"]: trace["meta"]["slot"] for trace in before["figure"]["data"]}
    assert slots == {name: traces[name]["meta"]["slot"] for name in slots}


@pytest.mark.parametrize(("path", "host", "status"), [("/runs.json", "evil.example:80", 403), ("/../x", "", 404)])
def test_the_server_answers_only_its_own_pages_and_names(address: str, path: str, host: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        read(address + path, **({"Host": host} if host else {}))
    assert error.value.code == status


def test_a_port_that_is_taken_is_told_in_one_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    port = address.rpartition(":")[2]
    assert runs.main(["--serve", f"port={port}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: host=127.0.0.1 port={port} cannot be listened on")

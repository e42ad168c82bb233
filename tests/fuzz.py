"""Random input, seeded and bounded: python tests/fuzz.py values|run_files [--n 200] [--seed 0].

values      random values for every key of the command line, and a few in processes of their own. Right is one line that
            says what is wrong, or a configuration that has what was typed and that reads back from config.yaml.
run_files   random damage to the files of a run, of a claim's results and of a claim, read by everything that reads
            them. Right is one line or a result, nothing changed on disk, and an end within seconds.

Exit status: 0 if all was right; else 1, with the seed and the input of each case that was not.
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import random
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from omegaconf import OmegaConf

from assembly.branch import origin_of
from configs import ConfigError, RunConfig, as_yaml, compose, flat
from configs.composition import known_keys
from files.reading import read_yaml
from launch import jobs
from launch.loss_curves import LossCurves
from launch.run_files import read_result
from report import results
from reproduce import claims, records
from scripts import compare, runs

ROOT = Path(__file__).resolve().parents[1]
BASES = (
    ["data=synthetic"],
    ["data=files", "data.source.pattern=x", "optim=sophiag", "logging=wandb"],
    ["data=openwebtext", "optim=soap", "schedule=wsd", "parallel=fsdp2"],
    ["optim=sgd", "schedule=linear", "parallel=ddp"],
)
TYPED = ("data.prompt", "run_dir", "data.root", "data.source.", "data.tokenizer.", "logging.")  # texts as typed
ODD = [
    *("", " ", "null", "true", "nan", "inf", "-inf", "0", "-1", "1e3", "1e999", "007", "0x10", "1_000", "5%", "1,2"),
    *("[1,2]", "[0.9]", "[", "]", "{}", "{a: 1}", "{", "${x}", "${seed}", "${oc.env:HOME}", "\\${x}", "$HOME/x"),
    *("~", "~/x", "'x'", '"x"', "'x", '"""Doc', "a=b", "a b", "a #b", "a: b", "*a", "&a", "@x", "a,b", "$NOPE"),
    *(
        "range(1,3)",
        "glob(*)",
        "interval(0,1)",
        "choice(1,2)",
        "int(3)",
        "模型",
        "ü",
        "\t",
        "a\nb",
        "\x1b[31m",
        "\udcff",
    ),
    *("9" * 30, "9" * 5000, "x" * 5000, "[" * 500, "os.system", "torch.optim.RAdam", "optim.Lion", "data.Bytes"),
    *("\udcff", "..", "/", "|", "`", ";", "!"),
]
LEFT_ALONE = {"beside", "overrides.json"}
SECONDS = 20.0  # for one case, at most


def values(n: int, seed: int, *, processes: int = 0) -> list[str]:
    """What was wrong with n random values of random keys, in this process, and with as many in others as asked for."""
    chance, wrong = random.Random(seed), []
    known = [_keys(base) for base in BASES]
    for case in range(n):
        at = chance.randrange(len(BASES))
        others = [f"{chance.choice(known[at])}={_raw(chance)}" for _ in range(chance.choice([0, 0, 0, 1, 2]))]
        key, raw, base = chance.choice(known[at]), _raw(chance), [*BASES[at], *others]
        if said := _compose_fault(base, key, raw) or (_process_fault(base, key, raw) if case < processes else ""):
            wrong.append(f"seed {seed} case {case}: {base!r:.300} {key}={raw!r:.200}: {said}")
    return wrong


def _keys(base: Sequence[str]) -> list[str]:
    return [key for key in known_keys(base) if "/" not in key] + ["optim._target_", "schedule._target_"]


def _raw(chance: random.Random) -> str:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.choice(ODD)
    if kind == 1:
        return repr(chance.choice([chance.uniform(-2, 2), 10 ** chance.uniform(-12, 4), chance.randrange(-3, 2000)]))
    letters = string.printable + "äß€模\\${}[]()'\"=,#~" * 2
    return "".join(chance.choice(letters) for _ in range(chance.randrange(12)))


def _compose_fault(base: Sequence[str], key: str, raw: str) -> str:
    """What is wrong with how the value is taken; empty if nothing is."""
    started = time.monotonic()
    try:
        config = compose([*base, f"{key}={raw}"])
    except ConfigError as error:
        return "" if str(error) and "\n" not in str(error) and len(str(error)) < 1500 else f"no short line: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if time.monotonic() - started > SECONDS:
            raise TimeoutError(f"{key}={raw!r:.200}")
    return _value_fault(config, key, raw) or _saved_fault(config)


def _value_fault(config: RunConfig, key: str, raw: str) -> str:
    found = flat(config).get(key)
    is_plain = raw and not any(char in raw for char in "$~'\"") and raw != "null"
    if key == "data.prompt" and found != raw:
        return f"the prompt became {found!r}"
    if key.startswith(TYPED) and isinstance(found, str) and is_plain and found != raw:
        return f"the text became {found!r}"
    with contextlib.suppress(ValueError):
        if isinstance(found, int | float) and not isinstance(found, bool) and float(raw) != found:
            return f"the number became {found!r}"
    return ""


def _saved_fault(config: RunConfig) -> str:
    """Whether config.yaml, as train.py writes it, reads back as the same settings."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(as_yaml(config), encoding="utf-8")
        saved, ours = flat(read_yaml(path) or {}), flat(config)
    return "" if saved == ours else f"config.yaml reads back otherwise: {set(saved.items()) ^ set(ours.items())!s:.300}"


def _process_fault(base: Sequence[str], key: str, raw: str) -> str:
    command = [sys.executable, str(ROOT / "train.py"), "--cfg", *map(os.fsencode, [*base, f"{key}={raw}"])]
    done = subprocess.run(
        command, capture_output=True, timeout=SECONDS, check=False, env={**os.environ, "COLUMNS": "80"}
    )
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    is_right = done.returncode == 0 or (done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "))
    return "" if is_right else f"exit {done.returncode}: {lines[-3:]}"


def run_files(n: int, seed: int, *, sample: bool = True) -> list[str]:
    """What was wrong with n random damages; sample: also read by scripts/sample.py, which needs a run that trained."""
    chance, wrong = random.Random(seed), []
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write_originals(folder / "original", train=sample)
        for case in range(n):
            where = folder / f"case-{case}"
            shutil.copytree(folder / "original", where)
            damaged, done = _damage(where, chance)
            for reader, read in _readers(where, damaged, folder / f"out-{case}", sample=sample).items():
                if said := _reading_fault(read, where):
                    wrong.append(f"seed {seed} case {case}: {done} {damaged}: {reader}: {said}")
            shutil.rmtree(where)
    return wrong


def _write_originals(folder: Path, *, train: bool) -> None:
    """A run, another one beside it, results and a claim. train: with a checkpoint, from a run of train.py."""
    overrides = [*BASES[0], "model=pico", "max_steps=2", "eval_every=1", "log_every=1", "device=cpu", "precision=fp32"]
    overrides += ["model.block_size=16", "model.n_embd=16", "global_batch=2", "micro_batch=2", "eval_sequences=4"]
    overrides += ["schedule.warmup_steps=1", f"data.root={folder}/data", f"run_dir={folder}/run"]
    folder.mkdir()
    if train:
        subprocess.run([sys.executable, str(ROOT / "train.py"), *overrides], check=True, capture_output=True)
        shutil.rmtree(folder / "data")
    else:
        _write_run(folder / "run", compose(overrides))
    _write_run(folder / "beside", compose([*overrides, "seed=2"]))
    env = json.loads((folder / "run" / "env.json").read_text())
    (folder / "beside" / "env.json").write_text(json.dumps(env))
    (folder / "overrides.json").write_text(json.dumps(overrides))
    shutil.copy(ROOT / "docs" / "claims" / "logicnest-nano" / "results.json", folder / "results.json")
    (folder / "claims").mkdir()
    for claim in ("logicnest", "sophia_clip", "sophia_2x"):
        shutil.copy(claims.FOLDER / f"{claim}.yaml", folder / "claims")


def _write_run(folder: Path, config: RunConfig) -> None:
    (folder / "checkpoints" / "step_000002").mkdir(parents=True)
    (folder / "config.yaml").write_text(as_yaml(config))
    rows = [
        {"step": n, "tokens": n * 32, "seconds": n / 2, "flops": n, "val/loss": 5 - n / 4, "lr": 0.1} for n in range(3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | {"clipped_steps": 1}) + "\n" for row in rows))
    (folder / "env.json").write_text(json.dumps({"device": "a CPU", "data": {"val": "v"}, "git": {"commit": "c0ffee"}}))
    result = {"status": "finished", "step": 2, "seconds": 1.0, "flops": 2, "tokens": 64, "val/loss": 4.5}
    (folder / "result.json").write_text(json.dumps(result))


def _readers(where: Path, damaged: str, out: Path, *, sample: bool) -> dict[str, Callable[[], object]]:
    """Who reads the damaged file."""
    if damaged == "results.json":
        return {"results": lambda: results.read(where / damaged)}
    if damaged.startswith("claims/"):
        return {"claims": lambda: claims.load(Path(damaged).stem, "nano", folder=where / "claims")}
    run, beside = where / "run", where / "beside"
    overrides = [each for each in json.loads((where / "overrides.json").read_text()) if "run_dir" not in each]

    def compared() -> None:
        found = compare.compare([run, beside], allow_different_data=True)
        assert all(
            measure.estimate is None or math.isfinite(measure.estimate) for measure in found.protocols[0].measures
        )
        if out.name.endswith("0"):  # pictures take a while
            _main(compare.main, [str(run), str(beside), "--different-data", f"out={out}"])

    readers: dict[str, Callable[[], object]] = {
        "records": lambda: records.read(run),
        "compare": compared,
        "sweep": lambda: jobs.unfinished([jobs.Job("run", (*overrides, f"run_dir={run}"))]),
        "result": lambda: read_result(run),
        "runs": lambda: _main(runs.main, [str(run), "optim=adamw", "sort=val/loss"]),
        "prune": lambda: _main(runs.main, [str(run), "prune=runs"]),
        "curves": lambda: LossCurves(run).update(),
        "branch": lambda: origin_of(compose([*overrides, f"start_from={run}@2"]), "fp32"),
    }
    if sample:
        from scripts import sample as sampling

        readers["sample"] = lambda: _main(sampling.main, [f"run={run}", "tokens=1", "prompt=a"])
    return readers


def _main(main: Callable[[list[str]], int], arguments: list[str]) -> None:
    """A script, which says one line and ends with 2, or ends well."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        status = main(arguments)
    said = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    assert (status, len(said)) in ((0, 0), (2, 1)), f"exit {status}, {errors.getvalue()}"


def _reading_fault(read: Callable[[], object], where: Path) -> str:
    before, started = _digest(where), time.monotonic()
    try:
        read()
    except ValueError as error:
        lines = error.args if isinstance(error, ConfigError) else [str(error)]
        if not lines or any("\n" in line or len(line) > 3000 for line in lines):
            return f"no short line: {error!s:.300}"
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.300}"
    if time.monotonic() - started > SECONDS:
        return f"took {time.monotonic() - started:.0f} s"
    return "" if _digest(where) == before else "changed what it read"


def _digest(folder: Path) -> str:
    """Of names and contents; what is no file counts by its name."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path).encode())
        if path.is_file() and not path.is_symlink():
            found.update(path.read_bytes())
    return found.hexdigest()


def _damage(where: Path, chance: random.Random) -> tuple[str, str]:
    """Damages one file; which one, and what was done."""
    files = [path for suffix in ("json", "jsonl", "yaml") for path in sorted(where.rglob(f"*.{suffix}"))]
    path = chance.choice([each for each in files if not LEFT_ALONE & set(each.parts)])
    how = chance.choice(DAMAGES)
    how(path, chance)
    return str(path.relative_to(where)), how.__name__


def _flip_bits(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.randrange(1, 4)):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _truncate(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def _remove(path: Path, chance: random.Random) -> None:
    path.unlink()


def _change_value(path: Path, chance: random.Random) -> None:
    """Another value at a random place, in the format of the file."""
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(_changed(json.loads(lines[at]), chance))
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(_changed(json.loads(path.read_text()), chance)))
    else:
        path.write_text(json.dumps(_changed(OmegaConf.to_container(OmegaConf.load(path)), chance)))  # JSON is YAML too


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
    return chance.choice(
        [None, True, -1, 0.5, 1e308, math.nan, math.inf, 10**30, "x", "", "${oc.env:HOME}", [], {}, [[1]]]
    )


def _replace(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.choice(HOSTILE))


def _repeat_lines(path: Path, chance: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(chance.choices(lines, k=2 * len(lines))))


def _make_fifo(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _make_folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _make_link(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(chance.choice([path, Path("/dev/zero"), Path("/nowhere"), path.parent]))


def _widen(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_text(errors="replace").encode(chance.choice(["utf-16", "utf-32", "utf-8-sig"])))


DAMAGES = (
    *(_flip_bits, _truncate, _remove, _change_value, _change_value, _change_value, _replace, _replace),
    *(_repeat_lines, _make_fifo, _make_folder, _make_link, _widen),
)
REFERENCES = [f"k{n}: &k{n} [{','.join([f'*k{n - 1}'] * 9)}]" for n in range(1, 20)]
BOMB = "\n".join(["k0: &k0 [x, x, x]", *REFERENCES]).encode()
HOSTILE = [
    *(b"", b"5", b"[1]", b"null", b'"x"', b"\0" * 100, b"{", b"{}", b"\xff\xfe", b"NaN", b"{} {}", b"{}\n5\n", b"a: ["),
    *(b"[" * 200_000, b'{"a":' * 200_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"step": NaN, "val/loss": "x"}\n' * 3),
    *(BOMB, b"a: !!python/object/apply:os.system ['touch PWNED']", b"a: ${oc.env:HOME}", b"- 1"),
    b'{"a": "' + b"x" * 10_000_000 + b'"}',
]


def main(arguments: list[str] | None = None) -> int:
    """Prints what was wrong; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("values", "run_files"))
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    started = time.monotonic()
    if asked.what == "values":
        wrong = values(asked.n, asked.seed, processes=max(1, asked.n // 20))
    else:
        wrong = run_files(asked.n, asked.seed)
    print(*wrong, f"{asked.n} {asked.what}, {len(wrong)} wrong, {time.monotonic() - started:.0f} s", sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

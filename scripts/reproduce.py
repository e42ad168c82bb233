"""Re-runs a paper's claim: python scripts/reproduce.py claim=sophia_2x scale=nano [key=value ...].

claim    one of those below, or all
scale    nano (two CPU cores, 2 to 8 hours; less if other claims have run), micro (hours), gpu (one device, 25
         minutes), small, medium, large (the papers' size, GPUs)
jobs     runs at once; as many as there are CUDA devices, or cores; under SLURM as it has room
ranks    processes of each run, 1
launch   where runs are started: local (the default), as processes of this machine, or slurm; its keys are launch.*
seeds    of the comparison, how many; the claim's own, 3
out      the folder, reproductions/<claim>-<scale>
atlas    the folder of the runs that all claims share, atlas/ beside out
runs     published: takes runs that others have trained on the same data, those of docs/claims/published, and trains the
         rest; own (the default): trains all
ledger   of claim=all: the folder for the reports of all claims, docs/claims, whose verdicts the README shows too
--dry-run   trains nothing: says what would run, and what it costs on this machine, or
gpu      on such a GPU, for example H100, from FLOPs and the peak in its data sheet, and
mfu      the share of that peak that runs are assumed to reach, 0.3

Any other key=value goes to every run, for example data.root=/scratch. The same command continues what was interrupted.
Devices, data and tokenizer are checked before the first run; a failure that all runs would share ends the command.
Exit status: 0 done, whatever the verdict; 1 runs failed; 2 bad input; 75 interrupted.
"""

import math
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

from rich.console import Console

from configs import answer, choose, plug_in
from configs.commands import is_of
from files.errors import one_line
from files.paths import expanded
from launch.processes import cuda_devices
from launch.statuses import EXIT_STATUS, FAILED
from launch.stopping import leave, stop_signals
from report.content import parts, verdict_at_scale
from report.numbers import in_words
from report.results import Results, ResultsError, Table, read
from reproduce import claims
from reproduce.claim import Claim
from reproduce.mistakes import ClaimError

if TYPE_CHECKING:
    from launch.job import Job, Outcome
    from launch.launcher import Launcher
    from reproduce.forecast import Forecast

ROOT, LEDGER, ATLAS, PUBLISHED = Path(__file__).resolve().parents[1], "docs/claims", "atlas", "published"
COUNTS, PATHS, GPU = ("jobs", "ranks", "seeds"), ("out", "atlas", "ledger"), ("gpu", "mfu")
OWN = ("claim", "scale", "runs", *PATHS, *COUNTS, *GPU)
USUAL_MFU = 0.3
MOST = 9999
COPIED = (
    "report.md",
    "results.json",
    "*.csv",
    "*.png",
    "*.pdf",
)  # not report.html, which holds all of plotly


@dataclass(frozen=True)
class Request:
    """The settings on the command line."""

    claim: str
    scale: str
    out: Path | None
    atlas: Path | None
    ledger: Path
    launch: Mapping[str, Any]  # the class of the launcher and its arguments
    seeds: int | None
    overrides: tuple[str, ...]
    is_dry: bool
    takes_published: bool
    gpu: str | None
    mfu: float  # a share of the gpu's peak

    def load(self, name: str) -> Claim[Any]:
        """Reads the claim of that name."""
        return claims.load(name, self.scale, self.overrides, n_seeds=self.seeds)

    def folder(self, name: str) -> Path:
        """Returns the folder of the claim's runs and results."""
        own = f"{name}-{self.scale}"
        if self.out is None:
            return Path("reproductions") / own
        return self.out / own if self.claim == "all" else self.out

    def command(self, name: str) -> str:
        """Returns the command that does this again for one claim."""
        words = [f"claim={name}", f"scale={self.scale}"]
        words += [f"seeds={self.seeds}"] if self.seeds is not None else []
        return shlex.join(["python", "scripts/reproduce.py", *words, *self.overrides])


def parse(arguments: Sequence[str]) -> Request:
    """Returns the settings in the arguments.

    Raises: ClaimError: if an argument is not valid.
    """
    settings: dict[str, str] = {}
    overrides, launch = [], []
    for argument in (argument for argument in arguments if argument != "--dry-run"):
        key, is_pair, value = argument.partition("=")
        if not is_pair:
            raise ClaimError(f"{argument!r} must read key=value, or be --dry-run or --help")
        if is_of("launch", argument):
            launch.append(argument)
        elif key in OWN:
            settings[key] = value
        else:
            overrides.append(argument)
    for key in ("claim", "scale"):
        if not settings.get(key):
            raise ClaimError(f"{key}= is missing; claims: {', '.join(claims.names())}; for example scale=nano")
    counts = {key: _count(key, settings[key]) for key in COUNTS if key in settings}
    paths = {key: expanded(settings[key], key) for key in PATHS if key in settings}
    usual = [f"launch.at_once={counts.get('jobs', 'null')}", f"launch.ranks={counts.get('ranks', 1)}"]
    return Request(
        claim=settings["claim"],
        scale=settings["scale"],
        out=paths.get("out"),
        atlas=paths.get("atlas"),
        ledger=paths.get("ledger", Path(LEDGER)),
        launch=choose("launch", [*usual, *launch]).node,
        seeds=counts.get("seeds"),
        overrides=tuple(overrides),
        is_dry="--dry-run" in arguments,
        takes_published=_is_published(settings.get("runs", "own")),
        gpu=_gpu(settings, is_dry="--dry-run" in arguments),
        mfu=_share("mfu", settings["mfu"]) if "mfu" in settings else USUAL_MFU,
    )


def main(arguments: list[str]) -> int:
    """Reproduces the claim, or all; returns the exit status."""
    asks_for_help = not arguments or "claim=" in arguments
    given = ["--help"] if asks_for_help else arguments
    status = answer(given, lambda beside: f"{__doc__}\n{listing()}".strip(), _reproduce)
    return status if arguments else EXIT_STATUS["bad input"]


def _reproduce(arguments: list[str]) -> int:
    request = parse(arguments)
    if request.claim == "all":
        return _all(request)
    return _one(request, request.load(request.claim))


def listing() -> str:
    """Lists the claims, each with its title and scales, or what is wrong with its file."""
    return "\n".join(["claims:", *(f"{name:22} {_described(name)}" for name in claims.names())])


def _described(name: str) -> str:
    try:
        return f"{claims.title(name)} ({', '.join(claims.scales(name))})"
    except ValueError as error:
        return f"cannot be read: {one_line(error)}"


def _all(request: Request) -> int:
    """Reproduces every claim that has the scale, whether or not others fail; then writes the ledger."""
    chosen = {name: request.load(name) for name in claims.names() if request.scale in claims.scales(name)}
    if not chosen:
        raise ClaimError(f"no claim has the scale {request.scale!r}")
    statuses = []
    for name, claim in chosen.items():
        print(f"\n{name}: {claim.fields.title}", flush=True)
        try:
            statuses.append(_one(request, claim))
        except ValueError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            statuses.append(EXIT_STATUS["bad input"])
    if not request.is_dry:
        folders = {name: request.folder(name) for name in chosen}
        atlas = request.atlas or next(iter(folders.values())).parent / ATLAS
        write_ledger(folders, request.ledger, atlas)
        _publish(atlas, request.scale, request.ledger / PUBLISHED)
    return next((status for status in statuses if status), 0)


def _one(request: Request, claim: Claim[Any]) -> int:
    if request.is_dry:
        return _dry(request, claim)
    from reproduce import published, reproduction  # import torch

    folder, launcher = request.folder(claim.id), plug_in(request.launch)
    if launcher.is_elsewhere and not claim.kind.protocols(claim):
        raise ClaimError(f"{claim.id} trains nothing and measures where it is started: leave out launch=")
    if request.takes_published and claim.kind.protocols(claim):
        n_put = published.take(claim, request.atlas or folder.parent / ATLAS, ROOT / LEDGER / PUBLISHED)
        print(f"{n_put} published runs taken", flush=True)
    try:
        again, runs = request.command(claim.id), _Runs(launcher, claim)
        results = reproduction.reproduce(claim, folder, again, atlas=request.atlas, run=runs, call=launcher.called)
    except reproduction.RunsFailedError as error:
        print(f"error: {error}\nthe same command tries these again", file=sys.stderr)
        return FAILED
    if results.tuning:
        print(f"\n{results.tuning}")
    print(f"\n{verdict_at_scale(results)}: {results.sentence}")
    if len(rows := parts(results)) > 1:
        for row in rows:
            print(f"  {in_words(row)}: {row.verdict}")
    print(f"\nreport  {folder / 'report.html'}")
    return 0


class _Runs:
    """Runs jobs; before the first that is not finished, checks device, data and tokenizer."""

    def __init__(self, launcher: "Launcher", claim: Claim[Any]) -> None:
        self._launcher, self._claim, self._is_checked = launcher, claim, False

    def __call__(self, jobs: Sequence["Job"]) -> "list[Outcome]":
        from launch.jobs import run_jobs, unfinished
        from reproduce import preconditions

        if not self._is_checked and unfinished(jobs):
            preconditions.check(self._claim, is_elsewhere=self._launcher.is_elsewhere)
            self._is_checked = True
        return run_jobs(jobs, self._launcher, alike=True)


def _dry(request: Request, claim: Claim[Any]) -> int:
    """Prints what would run, and how long it takes; returns the exit status."""
    if not claim.kind.protocols(claim):
        print(f"{claim.id} trains nothing: {claim.kind.description}")
        return 0
    from reproduce import forecast, regime  # import torch

    launcher: Launcher = plug_in(request.launch)
    if launcher.is_elsewhere and request.gpu is None:
        raise ClaimError("runs would be on other machines, so this one cannot tell what they cost: give gpu=H100, say")
    if request.gpu is not None:
        calibrate = forecast.on_gpu(request.gpu, request.mfu)
    else:
        from reproduce.calibration import calibrate
    found = forecast.forecast(claim, calibrate, at_once=launcher.at_once or 1)
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    console.print(forecast.table(found))
    free = _free(request.folder(claim.id)) / 1e9
    print(f"{_hours(request, launcher, found)}; checkpoints {found.disk_bytes / 1e9:.1f} GB, {free:.0f} GB free")
    print(
        "Where an optimum is away from where tuning starts, runs are added; those that any claim has run are skipped."
    )
    from reproduce.surroundings import training_tokens

    for check in regime.before(claim, training_tokens(claim)):
        state = {True: "passes", False: "FAILS", None: "open"}[check.passed]
        print(f"{check.id:4} {state:6}  {check.label}: {check.value} (wanted: {check.threshold})")
    return 0


def _hours(request: Request, launcher: "Launcher", found: "Forecast") -> str:
    if found.device_hours is None:
        return found.note
    if request.gpu is not None:
        what = f"at {request.mfu:.0%} of its peak, which is assumed (mfu=), not measured"
        n = (launcher.at_once or 1) * launcher.ranks
        together = f"; {found.device_hours / n:.2f} hours if {n} are always at work" if n > 1 else ""
        return f"about {found.device_hours:.2f} GPU-hours of one {request.gpu} {what}{together}"
    gpu_hours = f", {found.device_hours:.2f} GPU-hours" if cuda_devices() else ""
    return f"about {found.hours:.2f} hours on this machine with jobs={launcher.at_once}{gpu_hours}"


def _free(folder: Path) -> int:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free


def write_ledger(folders: Mapping[str, Path], ledger: Path, atlas: Path | None = None) -> None:
    """Copies the reports of all claims that have results to the ledger, and writes its tables of all that lie there.

    atlas: with the runs of claims that have begun and are not finished; None: of these nothing is said.

    Raises: ValueError: if a folder holds results of another claim, or damaged ones.
    """
    from report.ledger import write_ledger as write_table
    from report.ledger import write_short_table

    for name, folder in folders.items():
        if not (folder / "results.json").is_file():
            continue
        results = read(folder / "results.json")
        if results.claim != name or not results.scale.isidentifier():
            raise ClaimError(f"{folder} holds results of claim={results.claim} scale={results.scale}, not of {name}")
        place = ledger / f"{results.claim}-{results.scale}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for path in (path for pattern in COPIED for path in folder.glob(pattern)):
            shutil.copy(path, place / path.name)
        print(f"{name:22} {verdict_at_scale(results)}")
    rows = _in_ledger(ledger)
    print(f"ledger  {write_table(rows, ledger, _tables(rows, atlas))}")
    if ledger.resolve() == ROOT / LEDGER:
        write_short_table(rows, ROOT / "README.md", beside=f"{LEDGER}/")


def _publish(atlas: Path, scale: str, published: Path) -> None:
    """Writes the runs of the scale's atlases beside the reports, for who asks for runs=published."""
    from reproduce.published import publish  # imports torch

    for folder in sorted(atlas.glob(f"{scale}-*/")):
        print(f"runs    {publish(folder, published)} of {folder.name} in {published}")


def _tables(rows: Sequence[Results], atlas: Path | None) -> list[Table]:
    """What the ledger shows beside its verdicts: others' findings, all optimizers, and claims that are not finished."""
    from reproduce import progress, signs, standings  # import torch

    begun = [] if atlas is None else progress.begun(atlas, {(row.claim, row.scale) for row in rows})
    return [each for each in (signs.table(rows), *standings.tables(rows), progress.table(begun)) if each.rows]


def _in_ledger(ledger: Path) -> list[Results]:
    """The results of all claims and scales there, but for those of another version and of claims that are no more."""
    found: list[Results] = []
    for path in sorted(ledger.glob("*/results.json")):
        with suppress(ResultsError):
            results = read(path)
            found += [results] if results.claim in claims.names() else []
    return found


def _is_published(value: str) -> bool:
    if value not in ("own", PUBLISHED):
        raise ClaimError(f"runs={value} must be own or published")
    return value == PUBLISHED


def _gpu(settings: Mapping[str, str], *, is_dry: bool) -> str | None:
    if "gpu" in settings and not is_dry:
        raise ClaimError("gpu= names the GPU whose hours a dry run counts: add --dry-run, or leave it out")
    if "mfu" in settings and "gpu" not in settings:
        raise ClaimError("mfu= is a share of a GPU's peak: name the GPU as well, for example gpu=H100")
    return settings.get("gpu")


def _share(key: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ClaimError(f"{key}={value} must be a number above 0 and at most 1")
    return share


def _count(key: str, value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= MOST:
        raise ClaimError(f"{key}={value} must be a whole number of at least 1, and at most {MOST}")
    return int(value)


if __name__ == "__main__":
    for number in set(stop_signals()) - {signal.SIGINT}:  # outside of runs; run_jobs has its own
        signal.signal(number, lambda *_: sys.exit(EXIT_STATUS["stopped"]))
    leave(main(sys.argv[1:]))

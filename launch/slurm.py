"""launch=slurm: runs as elements of SLURM's job arrays, submitted by submitit.

Runs stay in the queue when the command that submitted them ends; the same command finds them there by
<run_dir>.slurm.json and follows them, and scripts/runs.py lists them. A run that SLURM's time limit or preemption ends
saves before, and its job goes back to the queue by itself. slurm_runs.py follows runs, slurm_task.py is what runs on a
node, slurm_queue.py asks SLURM.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from configs import ConfigError, compose
from files.errors import one_line
from files.lock import locked
from files.paths import expanded
from files.requirements import missing
from files.writing import write_text
from launch.launcher import Launcher, Running, Start, T
from launch.processes import reported, stamp
from launch.slurm_queue import Partition, Queue, can_see, partitions, undisturbed
from launch.slurm_runs import SlurmRun, read_record, record_path, wait_for
from launch.slurm_task import ROOT, Call, Task

if TYPE_CHECKING:
    from submitit import SlurmExecutor

MOST_IN_ARRAY = 1000  # SLURM's MaxArraySize is 1001 unless a site has changed it
SHARED_CORES = 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'  # which srun has not taken from the job since 22.05
FROM_SBATCH = {"partition": "SBATCH_PARTITION", "account": "SBATCH_ACCOUNT", "qos": "SBATCH_QOS"}
OURS = {  # options of sbatch, by the key that says the same
    **{name: name for name in ("partition", "account", "qos", "nodes")},
    "time": "minutes",
    "signal": "stop_seconds",
    "array": "at_once",
    "ntasks": "ranks",
    "ntasks_per_node": "ranks",
    "cpus_per_task": "cpus_per_rank",
    "gpus_per_node": "gpus_per_rank",
}


class Slurm(Launcher):
    """Jobs of SLURM.

    at_once: runs of a submission at a time, at most. ranks: of a run, spread over `nodes`, each with gpus_per_rank and
    cpus_per_rank. runs_per_job: so many runs share a job on one node, each with its share of it. minutes: a job's
    limit, after which it is queued again. stop_seconds: before the limit, when runs save. options: any other of
    sbatch's, launch.options.mem=64G. setup: lines of a shell that come first on a node. folder: of what jobs print.
    """

    is_elsewhere = True

    def __init__(
        self,
        at_once: int | None = None,
        ranks: int = 1,
        nodes: int = 1,
        gpus_per_rank: int = 1,
        cpus_per_rank: int = 8,
        runs_per_job: int = 1,
        minutes: int = 1440,
        stop_seconds: int = 300,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        options: Mapping[str, Any] | None = None,
        setup: Sequence[str] | None = None,
        folder: str = "runs/slurm",
    ) -> None:
        counts = {"ranks": ranks, "nodes": nodes, "cpus_per_rank": cpus_per_rank, "runs_per_job": runs_per_job}
        counts |= {"minutes": minutes, "stop_seconds": stop_seconds}
        counts |= {} if at_once is None else {"at_once": at_once}
        if wrong := [f"launch.{name}={count}" for name, count in counts.items() if count < 1]:
            raise ConfigError(f"{wrong[0]} must be >= 1")
        if gpus_per_rank < 0:
            raise ConfigError(f"launch.gpus_per_rank={gpus_per_rank} must be >= 0; 0: runs on CPUs")
        if ranks % nodes:
            raise ConfigError(
                f"launch.ranks={ranks} must be a multiple of launch.nodes={nodes}: nodes get as many each"
            )
        if runs_per_job > 1 and nodes > 1:
            raise ConfigError(f"launch.runs_per_job={runs_per_job} shares one node; leave out launch.nodes={nodes}")
        if stop_seconds >= 60 * minutes:
            raise ConfigError(
                f"launch.stop_seconds={stop_seconds} must be less than launch.minutes={minutes}, or runs would save "
                "and end as soon as they begin, again and again"
            )
        for name in options or {}:
            if (key := OURS.get(name.replace("-", "_"))) is not None:
                raise ConfigError(f"launch.options.{name} is set by launch.{key}; leave it out")
        self.at_once, self.ranks, self.nodes, self.runs_per_job = at_once, ranks, nodes, runs_per_job
        self.cpus, self.gpus = (each * runs_per_job for each in (cpus_per_rank, gpus_per_rank))
        self._of_rank = cpus_per_rank, gpus_per_rank or None
        self.folder = expanded(folder, "launch.folder")
        site = {"partition": partition, "account": account, "qos": qos}
        site = {name: value or os.environ.get(FROM_SBATCH[name]) for name, value in site.items()}
        self.partition = site["partition"]
        self._own: dict[str, Any] = {**site, "time": minutes, "signal_delay_s": stop_seconds}
        self._own |= {"setup": [*(setup or []), SHARED_CORES, _python_path()]}
        self._options = {"requeue": True, **(options or {})}
        self._queue = Queue()

    @override
    def check(self, runs: Sequence[Start]) -> None:
        if absent := missing("slurm"):
            raise ConfigError(f"launch=slurm needs {', '.join(absent)}: pip install -e '.[slurm]'")
        found = partitions()
        names = list(dict.fromkeys(each.name for each in found))
        wanted = self.partition or next((each.name for each in found if each.is_default), None)
        if wanted is None:
            raise ConfigError(f"SLURM has no default partition: give launch.partition=, one of {', '.join(names)}")
        if absent := [name for name in wanted.split(",") if name not in names]:  # SLURM takes several
            raise ConfigError(f"launch.partition={absent[0]} does not exist; SLURM has {', '.join(names)}")
        self._check_ranks(runs)
        self._check_nodes([each for each in found if each.name in wanted.split(",")])
        self._queue.refresh()
        if self._queue.error:
            raise ConfigError(self._queue.error)
        self._check_folders([run.run_dir for run in runs], wanted)

    def _check_folders(self, run_dirs: Sequence[Path], partition: str) -> None:
        options = [f"--{name}={value}" for name, value in self._own.items() if name in ("account", "qos") and value]
        needed = {_there(run_dir): "where runs are to be" for run_dir in run_dirs}
        needed = {ROOT: "which has the code", _there(self.folder): "where jobs print, launch.folder"} | needed
        seen: list[Path] = []
        for folder, what in needed.items():
            if any(folder.is_relative_to(each) for each in seen):
                continue
            if can_see(folder, partition, options) is False:
                raise ConfigError(
                    f"the nodes of partition {partition} do not see {folder}, {what}: choose a folder that all "
                    "machines share, by run_dir= or launch.folder=, or by a checkout that lies there"
                )
            seen.append(folder)

    def _check_ranks(self, runs: Sequence[Start]) -> None:
        """What train.py would refuse on a node, after the wait in the queue."""
        if self.ranks == 1:
            return
        of_one_process = compose([]).parallel  # as nothing was given
        for config in (run.config for run in runs):
            if config.parallel == of_one_process:
                raise ConfigError(
                    f"launch.ranks={self.ranks} wants a strategy for several processes: add parallel=ddp or "
                    "parallel=fsdp2"
                )
            if config.global_batch % (unit := config.micro_batch * self.ranks):
                raise ConfigError(
                    f"global_batch={config.global_batch} must be a multiple of micro_batch * launch.ranks = "
                    f"{config.micro_batch} * {self.ranks} = {unit}"
                )

    def _check_nodes(self, kinds: Sequence[Partition]) -> None:
        of_node = self.ranks // self.nodes
        what = f"launch.ranks={self.ranks} on launch.nodes={self.nodes} (launch.runs_per_job={self.runs_per_job})"
        for wanted, unit in ((of_node * self.gpus, "gpus"), (of_node * self.cpus, "cpus")):
            if wanted > (most := max(getattr(each, unit) for each in kinds)):
                raise ConfigError(
                    f"{what} wants {wanted} {unit.upper()[:-1]}s of each node; those of partition {kinds[0].name} have "
                    f"{most}: change launch.nodes or launch.{unit}_per_rank"
                )
        if self._own["time"] > (longest := max(each.minutes for each in kinds)):
            raise ConfigError(
                f"launch.minutes={self._own['time']} is more than partition {kinds[0].name} allows: give "
                f"launch.minutes={int(longest)} or less; a run that needs longer is saved and queued again"
            )
        if self.nodes > (there := sum(each.nodes for each in kinds)):
            raise ConfigError(f"{what}: partition {kinds[0].name} has {there} nodes")

    @override
    def room(self) -> int:
        return MOST_IN_ARRAY * self.runs_per_job if self._queue.answers() else 0

    @override
    def found(self, run: Start) -> Running | None:
        record = read_record(run.run_dir)
        job = None if record is None else record.get("job")
        if record is None or not isinstance(job, str) or self._queue.job(job) is None:
            return None
        return self._run(run, job, record)

    @override
    def start(self, runs: Sequence[Start], script: Path) -> list[Running | OSError]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "submitting.lock", "submitting to SLURM"):
            self._queue.refresh()
            if self._queue.error:  # what is in the queue is not known
                return [BlockingIOError(self._queue.error) for _ in runs]
            there = {run.run_dir: self.found(run) for run in runs}  # another command may have submitted them meanwhile
            todo = [run for run in runs if there[run.run_dir] is None]
            before = {run.run_dir: stamp(run.run_dir) for run in todo}
            shares = [todo[i : i + self.runs_per_job] for i in range(0, len(todo), self.runs_per_job)]
            for share, job in zip(shares, self._submitted(shares, script), strict=True):
                for run in share:
                    record = {"job": job, "result": before[run.run_dir]}
                    write_text(record_path(run.run_dir), json.dumps(record))
                    there[run.run_dir] = self._run(run, job, record)
            self._queue.refresh()
        return [there[run.run_dir] for run in runs]  # type: ignore[misc]  # none is None now

    def _run(self, run: Start, job: str, record: Mapping[str, Any]) -> SlurmRun:
        return SlurmRun(run.run_dir, job, self._queue, before=record.get("result"), logs=self.folder)

    @override
    def called(self, what: str, function: Callable[[], T]) -> T:
        from submitit.core.utils import pickle_load

        self.folder.mkdir(parents=True, exist_ok=True)
        one = {"nodes": 1, "ntasks_per_node": 1, "cpus_per_task": self._of_rank[0], "gpus_per_node": self._of_rank[1]}
        with undisturbed(), _refused():
            job = self._executor(one).submit(Call(function))
        wait_for(what, job.job_id, job.paths.result_pickle, self._queue, self.folder)
        how, found = pickle_load(job.paths.result_pickle)
        if how != "success":
            raise ValueError(f"job {job.job_id} of SLURM failed: {reported(found)}; see {self.folder}")
        if isinstance(found, ValueError):
            raise found
        answer: T = found
        return answer

    def resources(self) -> dict[str, int | None]:
        """What a job asks for: a task for each rank, or, where several runs share a job, one that starts them."""
        of_node = self.ranks // self.nodes
        tasks = of_node if self.runs_per_job == 1 else 1
        return {
            "nodes": self.nodes,
            "ntasks_per_node": tasks,
            "cpus_per_task": self.cpus * of_node // tasks,
            "gpus_per_node": self.gpus * of_node or None,
        }

    def _submitted(self, shares: Sequence[Sequence[Start]], script: Path) -> list[str]:
        """Submits an array with an element for each share of runs; returns the elements' names."""
        if not shares:
            return []
        at_once = -(-(self.at_once or len(shares)) // self.runs_per_job)
        executor = self._executor({**self.resources(), "array_parallelism": at_once})
        with undisturbed(), _refused(), executor.batch():
            jobs = [executor.submit(Task(script, _described(share), self.ranks)) for share in shares]
        return [job.job_id for job in jobs]

    def _executor(self, parameters: Mapping[str, Any]) -> "SlurmExecutor":
        from submitit import SlurmExecutor

        executor = SlurmExecutor(self.folder, max_num_timeout=1_000_000)
        executor.update_parameters(
            job_name="nanodescent",
            stderr_to_stdout=True,
            srun_args=["--kill-on-bad-exit=1"],  # or the other ranks would wait for one that could not start
            additional_parameters=self._options,
            **parameters,
            **{name: value for name, value in self._own.items() if value is not None},
        )
        return executor


@contextmanager
def _refused() -> Iterator[None]:
    """Says in one line that sbatch refuses a job. Raises: ConfigError."""
    from submitit.core.utils import FailedJobError

    try:
        yield
    except (FailedJobError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"launch=slurm: sbatch refuses the jobs: {one_line(error)}") from None


def _there(folder: Path) -> Path:
    """The nearest folder above that exists."""
    return next(path for path in folder.absolute().parents if path.is_dir())


def _described(share: Sequence[Start]) -> list[tuple[tuple[str, ...], Path]]:
    return [((*run.overrides, f"run_dir={run.run_dir.absolute()}"), run.run_dir.absolute()) for run in share]


def _python_path() -> str:
    """The line of a shell by which a node's Python finds this checkout."""
    return f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'

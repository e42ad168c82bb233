"""The run directory: locks it, checks that the run may continue there, and writes its files.

config.yaml       the resolved configuration
tokenizer.json    the data set's tokenizer, so that the model can be used without the data
env.json          versions, device, commit and data when the run last started or continued
metrics.jsonl     one row of metrics per line, see metrics.py
result.json       written last: its status says how the run ended
checkpoints/      see checkpoint.py
lock              locked by the process that trains, see files/lock.py
heartbeat         there from the first step on while the run goes on; its time is that of the last progress, see
                  heartbeat_file.py
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from files.errors import ReadingError
from files.lock import InUseError, Lock
from files.reading import read_json
from files.writing import release, remove_temporaries, reserve, write_json, write_text

CONFIG, ENVIRONMENT, TOKENIZER, RESULT, LOCK = "config.yaml", "env.json", "tokenizer.json", "result.json", "lock"
CHECKPOINTS, HEARTBEAT = "checkpoints", "heartbeat"
STATUSES = ("finished", "diverged", "stopped")
RESULT_BYTES = 1 << 14  # many times the size of a result.json


class RunDirectoryError(ValueError):
    """Raised if the directory cannot be used for this run; one clear line."""


class RunDirectory:
    """A run directory that this process has locked.

    path: created if missing. resume: "auto" continues an unfinished run of the same configuration or begins one,
    "never" requires an empty directory, "must" a run to continue. differences: describes how the configuration differs
    from that in a config.yaml; empty if it does not. is_main: whether this process writes; others do nothing.

    Raises: RunDirectoryError: if a live process uses the directory, it holds other files or another run, or resume
    forbids it. Nothing is changed then.
    """

    def __init__(
        self, path: Path, *, resume: str, differences: Callable[[Path], list[str]], is_main: bool = True
    ) -> None:
        self.path, self.checkpoints = path, path / CHECKPOINTS
        self._lock: Lock | None = None
        self._made: list[Path] = []  # folders that were created, the innermost first
        self._has_begun = False
        if not is_main:
            return
        self._lock = self._acquired()
        try:
            self._check(resume, differences)
        except ValueError:  # RunDirectoryError, or a file of the run that cannot be read
            self.close()
            raise
        self._lock.sign()
        with suppress(OSError):
            (path / HEARTBEAT).unlink(missing_ok=True)  # of a process that was killed: this one has made no progress

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json, None if there is none.

        Raises: RunDirectoryError: if result.json is damaged.
        """
        file = self.path / RESULT
        try:
            found = read_json(file)
            if found is not None and found.get("status") not in STATUSES:
                raise ReadingError(f"its status is not one of {', '.join(STATUSES)}")
        except ReadingError as error:
            raise RunDirectoryError(
                f"{file} does not say how the run ended ({error}); delete it, and the same command continues the run"
            ) from None
        return found

    def begin(self, config_yaml: str, environment: Mapping[str, Any], tokenizer_json: str) -> None:
        """Writes the files that describe the run, and removes the result.json of a run that was stopped.

        Raises: RunDirectoryError: if they cannot be written.
        """
        if self._lock is None:
            return
        try:
            reserve(self.path / RESULT, RESULT_BYTES)
            self._has_begun = True
            remove_temporaries(self.path)
            write_text(self.path / CONFIG, config_yaml)
            write_text(self.path / TOKENIZER, tokenizer_json)
            write_json(self.path / ENVIRONMENT, environment)
            (self.path / RESULT).unlink(missing_ok=True)  # last: until then it is a stopped run
        except OSError as error:
            release(self.path / RESULT)
            raise self._unwritable(error) from error

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json, for which begin() reserved disk space.

        Raises: RunDirectoryError: if it cannot be written.
        """
        if self._lock is None:
            return
        try:
            write_json(self.path / RESULT, result)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Unlocks the directory; if no run has begun in it, also removes what this process created."""
        if self._lock is None:
            return
        self._lock.release(leave_no_trace=not self._has_begun)
        if not self._has_begun:
            self._remove_made()

    def _acquired(self) -> Lock:
        try:
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            return Lock(self.path / LOCK)
        except InUseError as owner:
            raise RunDirectoryError(
                f"run_dir={self.path} is in use by {owner}; wait for it, stop it, or choose another run_dir"
            ) from None
        except OSError as error:
            self._remove_made()
            raise self._unwritable(error) from error

    def _remove_made(self) -> None:
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # another process has written to it
                return

    def _unwritable(self, error: OSError) -> RunDirectoryError:
        return RunDirectoryError(f"run_dir={self.path} cannot be written: {error.strerror}")

    def _check(self, resume: str, differences: Callable[[Path], list[str]]) -> None:
        is_fresh = not (self.path / CONFIG).is_file()
        ours = (f"{LOCK}.", f".{CONFIG}.", f".{RESULT}.")  # a killed process may leave these
        names = sorted(entry.name for entry in self.path.iterdir() if entry.name != LOCK)
        others = [name for name in names if not name.startswith(ours)]
        if is_fresh and others:
            raise RunDirectoryError(
                f"run_dir={self.path} holds {others[0]} and no run; choose an empty or a new directory"
            )
        if is_fresh and resume == "must":
            raise RunDirectoryError(f"resume=must, but run_dir={self.path} holds no run to continue")
        if not is_fresh and resume == "never":
            raise RunDirectoryError(f"resume=never, but run_dir={self.path} holds a run; choose another run_dir")
        if not is_fresh and (found := differences(self.path / CONFIG)):
            raise RunDirectoryError(
                f"run_dir={self.path} holds a run of another configuration: {'; '.join(found)}; "
                "choose another run_dir, or undo the difference; to go on from that run with it, add "
                f"start_from={self.path} and a new run_dir (start=weights: with its weights alone, from step 0)"
            )

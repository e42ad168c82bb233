"""The run directory: who may write it, whether it continues, and what it records.

config.yaml       the resolved configuration
tokenizer.json    of the data, so that the model can be used without them
env.json          versions, device, commit, data, as of the last time the run started or continued
metrics.jsonl     one object per line, see metrics.py
result.json       written last: its status says how the run ended
checkpoints/      see checkpoint.py
lock              held (flock) by the process that trains
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from trainer.files import write_json, write_text

CONFIG, TOKENIZER, RESULT, LOCK = "config.yaml", "tokenizer.json", "result.json", "lock"


class RunDirectoryError(ValueError):
    """The directory cannot be used for this run; one clear line."""


class RunDirectory:
    """An open and locked run directory.

    path: created if missing. identity: what makes it the same run, by dotted key. resume: "auto" continues an
    unfinished run of the same identity or begins one, "never" wants an unused directory, "must" a run to continue.
    differences: describes how two identities differ, empty if they do not. is_main: whether this process is the one
    that writes; others do nothing.

    Raises: RunDirectoryError: if a live process uses it, it holds something else or another run, or resume forbids it.
    Nothing is changed then.
    """

    def __init__(
        self, path: Path, *, resume: str, differences: Callable[[Path], list[str]], is_main: bool = True
    ) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self._lock: TextIO | None = None
        if not is_main:
            return
        self._lock = self._acquire()
        try:
            self._check(resume, differences)
        except RunDirectoryError:
            self.close()
            raise

    @property
    def result(self) -> dict[str, Any] | None:
        """How the run ended, None if it has not."""
        file = self.path / RESULT
        return json.loads(file.read_bytes()) if file.is_file() else None

    def begin(self, config_yaml: str, environment: Mapping[str, Any], tokenizer_json: str) -> None:
        """Records this start of the run; the result of a stopped one is taken back."""
        if self._lock is None:
            return
        write_text(self.path / CONFIG, config_yaml)
        write_text(self.path / TOKENIZER, tokenizer_json)
        (self.path / RESULT).unlink(missing_ok=True)
        write_json(self.path / "env.json", environment)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json."""
        if self._lock is not None:
            write_json(self.path / RESULT, result)

    def close(self) -> None:
        """Lets other processes use the directory."""
        if self._lock is not None:
            self._lock.close()

    def _acquire(self) -> TextIO:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("a+")
        except OSError as error:
            raise RunDirectoryError(f"run_dir={self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise RunDirectoryError(
                f"run_dir={self.path} is in use by process {owner}; wait for it, stop it, or choose another run_dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _check(self, resume: str, differences: Callable[[Path], list[str]]) -> None:
        is_fresh = not (self.path / CONFIG).is_file()
        others = sorted(entry.name for entry in self.path.iterdir() if entry.name not in (LOCK, f".{CONFIG}.tmp"))
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
                "choose another run_dir, or undo the difference"
            )

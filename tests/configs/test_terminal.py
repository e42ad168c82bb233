import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTECTED = "from configs.terminal import protect_output; protect_output(); import os, sys\n"


def start(code: str, trace: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A process with protected output that leaves a file when it gets to its end."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{PROTECTED}{code}\nopen({str(trace)!r}, 'w').close()"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_leaves_ends_nothing(tmp_path: Path, stream: str) -> None:
    process = start(f"for _ in range(100000): print('a line of text', file=sys.{stream})", tmp_path / "end")
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
    assert process.wait() == 0
    assert (tmp_path / "end").exists()


def test_characters_that_the_encoding_lacks_become_escapes(tmp_path: Path) -> None:
    process = start("print('é 模型 end')", tmp_path / "end", PYTHONIOENCODING="latin-1")
    printed, complaints = process.communicate()
    assert (process.returncode, complaints) == (0, b"")
    assert printed == "é \\u6a21\\u578b end\n".encode("latin-1")


def test_a_disk_that_is_full_for_a_while_costs_what_it_did_not_take(tmp_path: Path) -> None:
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"os.dup2(os.open({str(tmp_path / 'out')!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)\n"
        "limit = lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))\n"
        "print('first', flush=True); limit(6); print('lost', flush=True)\n"
        "limit(resource.RLIM_INFINITY); print('last', flush=True)"
    )
    process = start(code, tmp_path / "end")
    _, complaints = process.communicate()
    assert (process.returncode, complaints) == (0, b"")
    assert (tmp_path / "out").read_text() == "first\nlast\n"


def test_ordinary_output_is_what_was_printed(tmp_path: Path) -> None:
    process = start("print('one'); print('two', file=sys.stderr)", tmp_path / "end")
    assert process.communicate() == (b"one\n", b"two\n")
    assert process.returncode == 0


def test_a_process_without_streams_runs(tmp_path: Path) -> None:
    code = f"{PROTECTED}print('x')\nprint('y', file=sys.stderr)\nopen({str(tmp_path / 'end')!r}, 'w').close()"
    assert subprocess.call(["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, code], cwd=ROOT) == 0
    assert (tmp_path / "end").exists()

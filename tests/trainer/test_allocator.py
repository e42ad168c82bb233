import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ALLOCATOR = Path(__file__).parents[2] / "trainer/allocator.py"
# Nothing is written to the block, so it costs no memory; sbrk(0) is where the heap ends.
FREES_A_LARGE_BLOCK = f"""
import ctypes, runpy
tuned = runpy.run_path({str(ALLOCATOR)!r})["tune_allocator"]()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_ssize_t]
block = libc.malloc(3 << 30)
assert block, "this machine gives no process 3 GiB"
end = libc.sbrk(0)
libc.free(block)
assert not tuned or libc.sbrk(0) == end, "the heap shrank"
"""


def test_a_tuned_heap_keeps_freed_blocks_of_any_size() -> None:
    """In a process of its own: the setting cannot be taken back."""
    subprocess.run([sys.executable, "-c", FREES_A_LARGE_BLOCK], check=True)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert runpy.run_path(str(ALLOCATOR))["tune_allocator"]() is False

"""Tunes the C allocator, for training on a CPU."""

import ctypes
import platform

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def tune_allocator() -> bool:
    """Makes glibc keep freed memory instead of returning it to the kernel; returns False where that is not possible.

    Every large temporary of a training step otherwise costs a page fault per 4 KiB, the largest avoidable cost on CPU
    (docs/benchmarks.md). The process then keeps its peak memory until it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TOP_PAD, 64 << 20), mallopt(M_TRIM_THRESHOLD, -1)])  # -1: never

"""Chooses device and precision, and describes them for env.json."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "tiktoken", "datasets", "wandb", "hydra-core")


def pick_device(choice: str) -> torch.device:
    """Returns the device for "auto", "cpu", "cuda", "xpu" (Intel) or "mps" (Apple); auto is CUDA, else the CPU.

    Raises: ValueError: if torch sees no such device.
    """
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    if choice != "cpu" and not torch.get_device_module(choice).is_available():
        raise ValueError(
            f"device={choice}, but torch sees no {choice.upper()} device; use device=cpu, or run scripts/doctor.py"
        )
    return torch.device(choice)


def pick_precision(choice: str, device: torch.device) -> str:
    """Returns the precision for "auto", "bf16" or "fp32"."""
    if choice != "auto":
        return choice
    return "bf16" if has_native_bf16(device) else "fp32"


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware: elsewhere bf16 is emulated and slower than fp32.

    Of MPS torch does not say so; there it must be asked for.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "xpu":
        return torch.xpu.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def set_precision_of_products(precision: str, device: torch.device) -> None:
    """Lets CUDA multiply fp32 matrices in TensorFloat32 in runs of bf16, and not in others; elsewhere does nothing.

    With bf16 the forward pass does not notice; the optimizers' products are several times as fast. By torch's older
    interface: after the newer one its compiler fails (2.13, github.com/pytorch/pytorch/issues/166387).
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "bf16" else "highest")


def widest_float(device: torch.device) -> torch.dtype:
    """Returns the widest floating-point dtype that the device computes in."""
    has_float64 = device.type != "mps" and (
        device.type != "xpu" or bool(torch.xpu.get_device_properties(device).has_fp64)
    )
    return torch.float64 if has_float64 else torch.float32


def device_name(device: torch.device) -> str:
    """Returns the vendor's name of the device."""
    if device.type in ("cuda", "xpu"):
        return str(torch.get_device_module(device).get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().split("model name\t: ")[1:] if cpuinfo.is_file() else []
    name = names[0].splitlines()[0] if names else platform.processor() or platform.machine()
    return f"{name}, MPS" if device.type == "mps" else name


def synchronize(device: torch.device) -> None:
    """Waits until the process's device of that type has done all its work, for clocks."""
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).synchronize()


def describe(device: torch.device, **facts: Any) -> dict[str, Any]:
    """Returns the content of env.json: versions, device, threads, the code's commit, and the given facts."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": device_name(device),
        "cuda": torch.version.cuda,
        "cpu_threads": torch.get_num_threads(),
        "git": git_state(),
        **facts,
    }


def git_state() -> dict[str, Any] | None:
    """Returns the commit, and whether tracked files differ from it; None outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def memory_bytes(device: torch.device) -> int:
    """Returns the peak memory of the process: on the device, else resident. MPS counts no peak: what it holds now."""
    if device.type in ("cuda", "xpu"):
        return int(torch.get_device_module(device).max_memory_allocated(device))
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Checks what a run needs, and prints a fix for each problem: python scripts/doctor.py [the overrides of the run].

Nothing is changed: data that are not prepared stay so. Exit status: 0, or 2 if something keeps the run from starting.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed, pinned

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assembly.data import data_path
from assembly.rehearsal import check_optimizer, check_settings
from configs import RunConfig, answer, compose, plug_in, run_help
from data import TokenDataset, load_tokenizer
from trainer import environment

GIB = 1 << 30
WANTED_FREE_GIB = 5


class Finding(NamedTuple):
    """The result of a check; fix is empty if there is no problem."""

    subject: str
    found: str
    fix: str = ""
    is_fatal: bool = False


def check_torch(config: RunConfig) -> Finding:
    """Checks the version of torch."""
    found, wanted = version("torch"), pinned("torch", "train")
    if found.partition("+")[0] != wanted:
        return Finding("torch", found, f"runs may work; the project is tested with {wanted}: pip install -e '.[train]'")
    return Finding("torch", f"{found}, {torch.get_num_threads()} CPU threads")


def check_device(config: RunConfig) -> Finding:
    """Checks that the configuration's device exists."""
    try:
        device = environment.pick_device(config.device)
    except ValueError as error:
        return Finding("device", f"no {config.device.upper()}", str(error), is_fatal=True)
    name = environment.device_name(device)
    if device.type == "cpu" and Path("/dev/nvidiactl").exists():
        return Finding("device", f"{name}, though there is an NVIDIA driver", "install a CUDA build of torch")
    return Finding("device", name)


def check_precision(config: RunConfig) -> Finding:
    """Checks whether bf16 is native."""
    device = environment.pick_device(config.device)
    native, precision = environment.has_native_bf16(device), environment.pick_precision(config.precision, device)
    if precision == "bf16" and not native:
        return Finding("bf16", "emulated, slower than fp32", "use precision=auto or precision=fp32")
    return Finding("bf16", "native" if native else f"not native; precision={precision}")


def check_compile(config: RunConfig) -> Finding:
    """Checks whether torch.compile works, by compiling a sum."""
    try:
        double: Callable[[torch.Tensor], torch.Tensor] = torch.compile(lambda x: (x + x).sum())
        works = float(double(torch.ones(8))) == 16
    except Exception as error:  # it fails with exceptions of many types
        reason = str(error).strip().partition("\n")[0]
        return Finding("torch.compile", f"fails: {reason}", "install a C++ compiler (g++), or use compile=false")
    return Finding("torch.compile", "works" if works else "gives wrong sums", "" if works else "use compile=false")


def check_disk(config: RunConfig) -> Finding:
    """Checks the free space for runs and data."""
    existing = next(path for path in [Path(config.run_dir), *Path(config.run_dir).absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free / GIB
    fix = f"free some space, or set run_dir and data.root elsewhere: {WANTED_FREE_GIB} GiB are a good start"
    if not os.access(existing, os.W_OK):
        return Finding("disk", f"{existing} is not writable", "choose another run_dir", is_fatal=True)
    return Finding("disk", f"{free:.1f} GiB free", fix if free < WANTED_FREE_GIB else "")


def check_model(config: RunConfig) -> Finding:
    """Checks that model (on the meta device), optimizer and schedule accept their settings."""
    try:
        check_settings(config)
        check_optimizer(config, environment.pick_device(config.device))
    except ValueError as error:
        return Finding("model, optimizer", "not usable", str(error), is_fatal=True)
    return Finding("model, optimizer", "take their settings")


def check_data(config: RunConfig) -> Finding:
    """Checks that the data set is prepared and complete."""
    try:
        source = plug_in(config.data.source)
        path = data_path(config, prepared=False)
        if source.embedded and not path.exists():
            source.files()  # raises if they are not here
            return Finding("data", "not prepared yet; train.py does that itself")
        train = TokenDataset.open(path, "train")
    except ValueError as error:
        return Finding("data", "not usable", str(error), is_fatal=True)
    return Finding("data", f"{train.n_tokens:,} training tokens, {train.vocab_size:,} token ids")


def check_tokenizer(config: RunConfig) -> Finding:
    """Checks that the tokenizer decodes what it has encoded."""
    try:
        path = data_path(config, prepared=False)
        if not path.exists():
            return Finding("tokenizer", "comes with the data set")
        text, tokenizer = "def f(x):\n    return 'é' # 42", load_tokenizer(path)
        works = tokenizer.decode(tokenizer.encode(text)) == text
    except ValueError as error:
        return Finding("tokenizer", "not usable", str(error), is_fatal=True)
    return Finding("tokenizer", "works" if works else "loses text", "" if works else "prepare the data set again")


CHECKS = (
    check_torch,
    check_device,
    check_precision,
    check_compile,
    check_disk,
    check_model,
    check_data,
    check_tokenizer,
)


def findings(config: RunConfig) -> Iterator[Finding]:
    """Yields the findings of all checks; without a device those that need it are not done."""
    for check in CHECKS:
        finding = check(config)
        yield finding
        if finding.is_fatal and finding.subject == "device":
            return


def main(arguments: list[str]) -> int:
    """Prints the findings; returns the exit status, 2 if the run cannot start."""
    return answer(arguments, partial(run_help, __doc__), _main)


def _main(arguments: list[str]) -> int:
    found = list(findings(compose(arguments)))
    table = Table("check", "found", "what to do")
    for finding in found:
        table.add_row(*map(Text, (finding.subject, finding.found, finding.fix or "fine")))
    Console().print(table)
    return 2 if any(finding.is_fatal for finding in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

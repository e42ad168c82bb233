"""The packages that pyproject.toml asks for, and which of them are missing; needs the standard library alone."""

import os
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
BAD_INPUT = 2  # the exit status, as configs.door has it
NAME = re.compile(r"[\w.-]+")


def required(extra: str) -> list[str]:
    """Returns the requirements of one of the project's extras, for example "hydra-core>=1.3.7"."""
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    return list(project["optional-dependencies"][extra])


def pinned(package: str, extra: str) -> str:
    """Returns the one version that an extra allows of the package."""
    (found,) = (m[1] for each in required(extra) if (m := re.fullmatch(rf"{package}==(\S+)", each)))
    return str(found)


def missing(extra: str) -> list[str]:
    """Returns the names of an extra's packages that are not installed, in whatever version."""
    names = [match[0] for each in required(extra) if (match := NAME.match(each))]
    return [name for name in names if not _is_installed(name)]


def check_installed(extra: str) -> None:
    """Ends the process with one line, on every machine once, and status 2 if packages of the extra are missing."""
    if not (names := missing(extra)):
        return
    if os.environ.get("LOCAL_RANK", "0") == "0":
        are = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
        print(
            f"error: {Path(sys.argv[0]).name} needs the packages of the extra [{extra}], of which {are} not installed: "
            f"pip install -e '.[{extra}]' in {PYPROJECT.parent}",
            file=sys.stderr,
        )
    sys.exit(BAD_INPUT)


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True

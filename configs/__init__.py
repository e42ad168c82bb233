"""From command line overrides to one checked configuration; imports hydra, never torch.

compose(overrides)    the configuration with its run_dir, or ConfigError: an unknown key names the nearest valid one
identity(config)      what makes two runs the same run, as a flat mapping; differences() compares two
settings(overrides)   the same without what is left at a constructor's default: what the names of runs are made of
expand(overrides)     the jobs of a sweep
answer(...)           the door of every script: --help, one line for bad input, exit statuses
arguments.py          the key=value arguments of scripts that take few
reading.py            files of runs, as plain data
"""

from configs.composition import FOLDER, GROUPS, compose, settings
from configs.door import Sweep, answer, from_command_line
from configs.errors import ConfigError
from configs.help import run_help
from configs.overrides import expand
from configs.plug_ins import plug_in
from configs.runs import as_yaml, differences, differing, flat, identity, read_config
from configs.schema import DataConfig, RunConfig
from files.errors import ReadingError

__all__ = [
    "FOLDER",
    "GROUPS",
    "ConfigError",
    "DataConfig",
    "ReadingError",
    "RunConfig",
    "Sweep",
    "answer",
    "as_yaml",
    "compose",
    "differences",
    "differing",
    "expand",
    "flat",
    "from_command_line",
    "identity",
    "plug_in",
    "read_config",
    "run_help",
    "settings",
]

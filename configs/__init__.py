"""From command line overrides to one checked configuration; imports hydra, never torch.

compose(overrides)    the configuration with its run_dir, or ConfigError: an unknown key names the nearest valid one
identity(config)      what makes two runs the same run, as a flat mapping; differences() compares two
composed(overrides)   the same, with the settings that runs are named by: less what is a constructor's default
expand(overrides)     the jobs of a sweep
choose(group, ...)    an option of a command's own: launch=...
answer(...)           the door of every script: --help, one line for bad input, exit statuses
groups.py             the groups of options, as folders
arguments.py          the key=value arguments of scripts that take few
reading.py            files of runs, as plain data
"""

from configs.commands import choose
from configs.composition import Composed, compose, composed
from configs.door import Sweep, answer, from_command_line
from configs.errors import ConfigError
from configs.groups import FOLDER, GROUPS
from configs.help import run_help
from configs.overrides import expand
from configs.plug_ins import plug_in
from configs.runs import as_yaml, differences, differing, flat, identity, read_config
from configs.schema import DataConfig, RunConfig
from files.errors import ReadingError

__all__ = [
    "FOLDER",
    "GROUPS",
    "Composed",
    "ConfigError",
    "DataConfig",
    "ReadingError",
    "RunConfig",
    "Sweep",
    "answer",
    "as_yaml",
    "choose",
    "compose",
    "composed",
    "differences",
    "differing",
    "expand",
    "flat",
    "from_command_line",
    "identity",
    "plug_in",
    "read_config",
    "run_help",
]

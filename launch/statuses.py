"""Exit statuses of the commands, and of train.py for each way a run ends."""

from configs.door import BAD_INPUT, STOPPED

FAILED = 1  # a run crashed
EXIT_STATUS = {"finished": 0, "bad input": BAD_INPUT, "diverged": 3, "stopped": STOPPED}  # any other is a failure

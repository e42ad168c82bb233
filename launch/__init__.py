"""How runs are started: as processes of train.py, several at a time, under torchrun or SLURM.

jobs.py        runs of train.py: skipped when finished, continued when broken
processes.py   one of them as a process: its command, its share of the machine, its log, how it ended
progress.py    what a person watches of them
sweep.py       every combination of the values given on the command line
run_files.py   the files of a run directory, checked
statuses.py    what train.py and the commands exit with
stopping.py    the signals that ask a run or its launcher to stop
slurm.sbatch   a batch script to start from

Knows run directories and configurations, nothing of claims; imports no torch.
"""

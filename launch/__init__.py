"""Starts runs as processes of train.py, several at a time, under torchrun or SLURM.

jobs.py        runs several train.py: finished ones are skipped, broken ones continued; by runner.py, which starts and
               follows them; job.py: what a job and its outcome are; entry.py: a job and what its run directory holds
launcher.py    where they are started, the seam; local.py: as processes of this machine
slurm.py       as jobs of SLURM; slurm_queue.py asks it, slurm_runs.py follows runs, slurm_task.py is on a node
processes.py   one train.py as a process: its command, its cores and devices, its log, how it ended
standstill.py  notices that a run hangs; watch.py: ends it
progress.py    reads how far runs are, and shows it
listing.py     finds run directories and says how their runs stand; run_rows.py: as rows of a table
pruning.py     deletes run directories or their checkpoints
loss_curves.py the losses of a run as it goes on; new_rows.py: what it has added to its file
search.py      searches hyperparameters by Optuna; its docstring is the map of the files search*.py
sweep.py       runs every combination of the values given on the command line; arms.py: its summary over seeds
run_files.py   reads the files of a run directory, checked
statuses.py    the exit statuses of train.py and the commands
stopping.py    handles the signals that ask a run or its launcher to stop
slurm.sbatch   a batch script for several nodes; one_node.sbatch: for one

Uses run directories and configurations, not claims; imports no torch.
"""

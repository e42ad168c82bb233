"""A paper's claim, re-run: claims -> runs -> statistics -> results.

claim.py       what a claim is: the fields of every claim file, arms
fields.py      how a mapping of a file becomes a dataclass: types, limits, one line for what is wrong
claims.py      configs/claim/*.yaml to a checked Claim at a scale
kind.py        what a kind of claim answers; kinds/ has one file for each, which alone knows its name
training.py    the fields of claims that train, whatever their kind
plans.py       one run before it is started: its name, overrides and hash
protocols.py   which runs a protocol wants next, given those that are done, and the comparison in the end
preconditions.py   what all runs of a claim need, checked before the first
records.py     run directories to curves, losses, costs; a diverged run is a failure of its arm, never absent
statistics.py  intervals, paired tests, fitted curves, the rule that gives a verdict; numbers in, numbers out
judging.py     numbers beside what a claim says of them: verdicts
exhibits.py    figures and tables of training runs
findings.py    what all protocols of a claim found, or a measurement without training (evidence.py)
timing.py, state.py   interleaved step times, by rounds.py; bytes of optimizer state at full size
forecast.py    what a claim will cost, before anything starts; calibration.py: in seconds on this machine
reproduction.py   a claim from start to finish

launch/ runs the plans, report/ shows the results. Each claim at a scale has one folder,
reproductions/<claim>-<scale>/: its runs, results.json and report. The same command continues it.
"""

"""A paper's claim, re-run: claims -> runs -> statistics -> report.

claims.py      configs/claim/*.yaml to a checked Claim at a scale
preconditions.py   what all runs of a claim need, checked before the first
protocols.py   which runs a protocol wants next, given those that are done: tuning rounds, then comparisons
jobs.py        runs are ordinary train.py processes (processes.py): skipped when finished, continued when broken,
               shown while they run (progress.py); serves sweeps too (sweep.py)
run_files.py   the files of a run directory, checked
measures.py    run directories to curves, speed-ups, overheads; a diverged run is a failure of its arm, never absent
statistics.py  intervals, paired tests, fitted curves, the rule that gives a verdict; numbers in, numbers out
findings.py    all of these to measures and verdicts; exhibits.py has the figures and tables
measurements.py   claims that need no training: small functions (toy.py), bytes of state (memory.py), interleaved step
               times (timing.py)
forecast.py    what a claim will cost, before anything starts
reproduction.py   a claim from start to finish
results.py     what all of these leave behind: results.json
report.py      results.json to report.html, report.md, CSV, PNG and PDF (page.py, figures.py); it computes nothing

Each claim at a scale has one folder, reproductions/<claim>-<scale>/: its runs, results.json and report. The same
command continues it.
"""

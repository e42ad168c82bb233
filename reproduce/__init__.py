"""A paper's claim, re-run: claims -> tuning -> runs -> regime checks -> results.

What a claim is
    claim.py, arms.py   the fields of every claim file; arms, which claims share, and the axes of their tuning
    fields.py           how a mapping of a file becomes a dataclass: types, limits
    mistakes.py         how all that is wrong with a file is said at once
    claims.py           configs/claim, configs/scale and configs/arm to a checked Claim at a scale
    kind.py             what a kind of claim answers; kinds/ has one file for each, which alone knows its name
    training.py         the fields of claims that train, whatever their kind: lengths, seeds
Which runs it takes
    plans.py            one run before it is started: its name, overrides and hash; trunks and branches
    tuner.py, tuned.py  how every arm is tuned alike; what is compared after it
    protocols.py        which runs are wanted next, given those that are done, and the comparison in the end
    atlas.py            where the runs of all claims lie, found by their hash; published.py: those of the ledger
    preconditions.py    what all runs of a claim need, checked before the first
    forecast.py, calibration.py   what a claim will cost, before anything starts
What the runs say
    records.py          run directories to curves, losses, costs; a diverged run is a failure of its arm, never absent
    speed_ups.py        speed-ups, what tuning leaves uncertain of them, what tuning alone gave
    judging.py          numbers beside what a claim says of them: verdicts
    regime.py           the checks R1 to R11, which outrank them; averages.py has two of them
    surroundings.py, tables.py, sizes.py   what checks need beside the runs
    timing.py, rounds.py, state.py   interleaved step times; bytes of optimizer state at full size
    exhibits.py, evidence.py, findings.py   figures and tables; what all protocols found
    reproduction.py     a claim from start to finish

The statistics are in inference/, numbers in and numbers out; launch/ runs the plans, report/ shows the results. Each
claim at a scale has one folder, reproductions/<claim>-<scale>/, with results.json and the report; the runs of all
claims are in reproductions/atlas/. The same command continues it.
"""

"""What numbers say: intervals, fitted curves, speed-ups, verdicts. Numbers in, numbers out; no claim, no run, no file.

intervals.py   means, paired differences, pooled scatter, the gap that a candidate closes
fitted.py      the curve that one arm's runs over several lengths lie on, and the parts of their scatter
curves.py      a candidate's speed-up over a baseline, from such runs of both, and nothing from beyond their range
vertex.py      where a tuned hyperparameter's optimum lies, and what a run beside it loses
verdicts.py    the five verdicts, the rule in words, and the verdict on several numbers
power.py       the chance that a comparison says "reproduced" of a claim that is true
"""

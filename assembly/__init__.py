"""Assembles a run: connects train.py with the packages below, which do not import each other.

run.py          Run: the parts of a run, its progress, and what is computed from them
setting_up.py   makes the parts from a configuration
rehearsal.py    tries the optimizer on a device that lacks operations
branch.py       begins a run at a step of another one, and lengthens one
weights.py      begins a run with weights of another one, or of another program
data.py         opens the prepared data set and this rank's loader
model.py        builds the model
trained.py      reads the model that a run has trained
cost.py         the FLOPs of a run
sinks.py        opens and closes the sinks, and sends them rows of metrics
ending.py       writes result.json, then shows how the run ended
"""

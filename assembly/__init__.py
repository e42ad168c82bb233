"""The parts of a run, put together: what lies between train.py and the packages that do not know each other.

run.py          Run: the parts, how far they are, and what follows from them
setting_up.py   makes them from a configuration
data.py         the prepared data set and this rank's loader
model.py        the model
sinks.py        where rows of metrics go
ending.py       result.json, then what is shown of a run that has ended
"""

"""The parts of a run, made from its configuration: what lies between train.py and the packages that know no other."""

"""A kind of claim each: see kind.py, which finds them by their files' names."""

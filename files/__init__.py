"""Reading, writing and locking files safely; imports none of the other packages.

writing.py   replaces files atomically, also on full disks
lock.py      lets one process at a time use a folder, also on file systems without locks
reading.py   reads JSON, YAML and JSON lines from untrusted files, as plain data
paths.py     expands ~ and variables in paths that users type
errors.py    errors of one clear line
requirements.py  the packages that pyproject.toml asks for, and which of them are missing
"""

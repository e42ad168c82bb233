"""Files that survive crashes, full disks, missing locks and what others wrote; imports none of the other packages.

writing.py   a file is either there in full, or as it was before
lock.py      one process at a time, also on file systems without locks
reading.py   JSON, YAML and JSON lines as plain data, whoever wrote them
paths.py     paths as users type them
errors.py    what is wrong, in one line
"""

"""Files that survive crashes, full disks and missing locks; imports the standard library and psutil alone.

writing.py   a file is either there in full, or as it was before
lock.py      one process at a time, also on file systems without locks
"""

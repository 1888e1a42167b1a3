"""The fault campaign: system calls that fail or are the last ones, kill -9, damaged files.

`uv run nox -s faults` runs it, and `python -m faults` in the directory above.
"""

"""Moved to command.py."""

from yocto_cli.command import UsageError, WorkFailedError

__all__ = ["UsageError", "WorkFailedError"]

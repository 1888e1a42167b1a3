"""What can go wrong in this package.

    TrainError
    ├── TrainConfigError (ValueError)    a setting is out of range or contradicts another
    ├── CheckpointError (ValueError)     a checkpoint is missing, damaged, or does not fit
    ├── RunError (ValueError)            a run directory is in use, or cannot be used
    ├── NonFiniteError (RuntimeError)    the loss or the gradient became NaN or infinite
    └── SaveError (RuntimeError)         a checkpoint could not be written

A ValueError says that the caller must change something; a RuntimeError that the work failed.
"""


class TrainError(Exception):
    """Base of every error that yocto-train raises on purpose."""


class TrainConfigError(TrainError, ValueError):
    """A setting is out of range or contradicts another one."""


class CheckpointError(TrainError, ValueError):
    """A checkpoint is missing, damaged, or does not fit what it is used for."""


class RunError(TrainError, ValueError):
    """A run directory is in use by another process, or cannot be used."""


class NonFiniteError(TrainError, RuntimeError):
    """The loss or the gradient became NaN or infinite; nothing was updated or saved with it."""


class SaveError(TrainError, RuntimeError):
    """A checkpoint could not be written; what was there before is unchanged."""


def reason(error: BaseException) -> str:
    """The system's words for a failure, or the error's own."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

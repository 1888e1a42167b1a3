"""What can go wrong in this package.

ModelError (ValueError)
├── ConfigError        a field of GPTConfig is out of range or contradicts another
├── InputError         token ids, a prompt or an argument that cannot be used
├── SamplingError      a sampling option out of range, or logits nothing can be drawn from
└── ModelFileError     a file that is not a model we support, is damaged, or does not fit

A message is one line: what, where, what to do. What it quotes is escaped and shortened first.
"""


class ModelError(ValueError):
    """Base of every error that yocto-model raises on purpose."""


class ConfigError(ModelError):
    """A field of `GPTConfig` is out of range or contradicts another one."""


class InputError(ModelError):
    """Token ids, a prompt or an argument that cannot be used."""


class SamplingError(ModelError):
    """A sampling option out of range, or logits from which nothing can be drawn."""


class ModelFileError(ModelError):
    """A file that is not a model of ours, is damaged, or does not fit its own settings."""


def quoted(value: object, limit: int = 60) -> str:
    """A value as an error message shows it: escaped, at most about `limit` characters.

    Numbers of usual size and strings are shown; of anything else, which may be a tensor or a list
    of any depth out of a damaged file, only the type.
    """
    if isinstance(value, str):
        shown = repr(value[: limit + 1])
        return shown if len(shown) <= limit else f"{shown[:limit]}...'"
    if type(value) in (bool, float, type(None)):
        return repr(value)
    if type(value) is int:
        return str(value) if abs(value) < 10**20 else f"an integer of {value.bit_length()} bits"
    return f"a value of type {type(value).__name__}"

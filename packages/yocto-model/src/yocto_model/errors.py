"""What can go wrong in this package.

ModelError (ValueError)
├── ConfigError        a field of GPTConfig is out of range or contradicts another
├── InputError         token ids or a prompt that the model cannot take
├── SamplingError      a sampling option out of range, or logits nothing can be drawn from
└── ModelFileError     a file that is not a model of ours, is damaged, or does not fit
"""


class ModelError(ValueError):
    """Base of every error that yocto-model raises on purpose."""


class ConfigError(ModelError):
    """A field of `GPTConfig` is out of range or contradicts another one."""


class InputError(ModelError):
    """Token ids or a prompt that the model cannot take."""


class SamplingError(ModelError):
    """A sampling option out of range, or logits from which nothing can be drawn."""


class ModelFileError(ModelError):
    """A file that is not a model of ours, is damaged, or does not fit its own settings."""

"""Hypothesis profiles and test-wide settings, for every package's tests and the root's."""

import os
import signal

from hypothesis import HealthCheck, settings

try:
    import torch
except ModuleNotFoundError:  # yocto-tokenizers is tested in an environment without torch
    torch = None  # type: ignore[assignment]

# No deadline in any profile: the first call of a torch operator can take seconds on a cold machine.
settings.register_profile("dev", max_examples=30, deadline=None)
# Derandomized, so that a pull request never fails by luck on somebody else's bug.
settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=2_000, deadline=None)
# Mutation testing runs pytest twice in one process, hence the suppressed check.
settings.register_profile(
    "mutation",
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.differing_executors],
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)

if torch is not None:
    # One thread: sums are reproducible, and parallel sessions do not fight for cores.
    torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell makes its background jobs ignore Ctrl-C, and commands that tests start inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

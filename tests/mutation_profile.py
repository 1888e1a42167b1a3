"""A pytest plugin for mutation testing: a test that fails need not find its smallest example."""

from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "mutation",
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    # Mutants run in forks of one process, some of them slow: no fault of the test's.
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("mutation")

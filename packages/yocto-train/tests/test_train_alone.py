"""A process that torchrun did not start trains alone, if what it asks for exists."""

import pytest
from yocto_train import TrainConfigError, joined


def test_alone_is_a_world_of_one() -> None:
    for parallel in ("ddp", "fsdp"):
        with joined(parallel) as world:
            assert (world.rank, world.size, world.kind) == (0, 1, "none")


def test_an_unknown_way_is_refused_even_alone() -> None:
    with (
        pytest.raises(TrainConfigError, match=r"^parallel must be ddp or fsdp, not 'pipeline'$"),
        joined("pipeline"),  # type: ignore[arg-type] # that is the point
    ):
        pass

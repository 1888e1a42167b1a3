"""Running a take to its end, or until the user has heard enough."""

from collections.abc import Callable, Sequence

from yocto_model import ModelError

from yocto_chat.interrupts import Interrupts, quiet_keyboard
from yocto_chat.take import Span, Take


def let_speak(take: Take, write: Callable[[Sequence[Span]], None]) -> ModelError | None:
    """Let a take speak.

    Ctrl-C ends it after the token that is being drawn, a second Ctrl-C at once; what was said
    stays.

    Args:
        take: the reply.
        write: called with each piece of it.

    Returns:
        What was wrong, if the model could not go on; what it had said until then stays too.
    """
    problem: ModelError | None = None
    with quiet_keyboard() as forget_typed, Interrupts() as interrupts:
        try:
            for spans in take:
                write(spans)
                if interrupts.requested:
                    take.stop()
        except KeyboardInterrupt:
            take.stop()
        except ModelError as error:
            take.stop()
            problem = error
        if interrupts.requested:
            forget_typed()
    return problem

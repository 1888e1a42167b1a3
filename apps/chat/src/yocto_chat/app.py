"""yocto-chat: its flags. The heavy imports wait until they have been read: --help is quick."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from yocto_cli.arguments import CommandArguments, flag, load
from yocto_cli.command import UsageError, run_command
from yocto_cli.model_arguments import ModelArguments, SamplingArguments

PROG = "yocto-chat"
DESCRIPTION = f"""\
Talk with a trained model: the newest one, unless a flag names another.

Examples:
  {PROG}
  {PROG} --ckpt checkpoints/philosophy-bpe --temperature 0.6
  echo "What is courage?" | {PROG} --seed 7"""

MAX_MESSAGE_CHARACTERS = 100_000


@dataclass(frozen=True, kw_only=True)
class ConversationArguments:
    """The conversation."""

    system_prompt: str = flag("", "a text in front of the conversation; it stays")
    template: str | None = flag(
        None, "a file with a chat template (Jinja) to ask by", shown="the model's own"
    )
    max_ctx_tokens: int = flag(
        0, "the most tokens that the model sees at once; 0 means as many as it can"
    )
    history: bool = flag(True, "keep what is typed, for the Up key, in a file only you can read")


@dataclass(frozen=True, kw_only=True)
class ChatArguments(CommandArguments):
    """The flags of yocto-chat."""

    SHORT: ClassVar[tuple[str, ...]] = (
        "ckpt", "system_prompt", "temperature", "max_new_tokens", "seed", "threads",
    )  # fmt: skip
    conversation: ConversationArguments = ConversationArguments()
    # A reply ends by itself or with the window; the limit is for those that would not. Cooler than
    # yocto-sample: of what a small model knows by heart, the likeliest is mostly the right answer.
    sampling: SamplingArguments = field(
        default_factory=lambda: SamplingArguments(max_new_tokens=400, temperature=0.2)
    )
    model: ModelArguments = field(default_factory=ModelArguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-chat; returns the exit code."""
    return run_command(_main, prog=PROG, argv=argv)


def _main(argv: list[str]) -> None:
    arguments = load(ChatArguments, argv, prog=PROG, description=DESCRIPTION)
    if arguments.conversation.max_ctx_tokens < 0:
        raise UsageError("--max_ctx_tokens must be at least 0")
    from yocto_chat.session import run  # noqa: PLC0415 - slower than parsing

    run(arguments)

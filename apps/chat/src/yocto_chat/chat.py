"""Chat: a running conversation with a model, and everything that can be done with it.

What was said is in `conversation.py`, what is shown in `screen.py`, what is typed in `reader.py`;
here they meet. Every method leaves a conversation that can go on, whatever went wrong.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from yocto_cli.asking import Layout, encode_known, known_part, unknown_characters
from yocto_cli.command import UsageError
from yocto_cli.model_arguments import SamplingArguments
from yocto_cli.models import named_characters
from yocto_cli.screen.terminal import counted
from yocto_model import ModelError
from yocto_tokenizers import ChatTemplateError

from yocto_chat.app import MAX_MESSAGE_CHARACTERS
from yocto_chat.conversation import (
    SHORTEST,
    Conversation,
    Finish,
    Prompt,
    Reply,
    build_prompt,
    messages_of,
)
from yocto_chat.generation import ChatModel, Generation
from yocto_chat.keyboard import interruptible
from yocto_chat.screen import Screen, Writer

if TYPE_CHECKING:
    from yocto_model import Token

_LARGEST_DRAWN_SEED = 1_000_000  # short enough to be typed again

_ENDINGS: dict[Finish, str] = {
    "stop": "stop",
    "limit": "limit: /continue",
    "window": "window",
    "stopped": "stopped: /continue",
}

#: Lets the user look at a reply's alternatives; the place and the id to put there, or None.
Chooser = Callable[[Generation], tuple[int, int] | None]


class Chat:
    """Talks with one model.

    Args:
        model: who answers.
        settings: how the next reply will be drawn.
        screen: where it is shown.
        max_ctx_tokens: the window, if it is to be smaller than the model's; 0 for the model's.
        system: a text that stays in front of the conversation.

    Raises:
        UsageError: the window is too small, the system text too long for it, or not taken.
        ChatTemplateError: the model's chat template cannot be used.
    """

    def __init__(
        self,
        model: ChatModel,
        settings: SamplingArguments,
        *,
        screen: Screen,
        max_ctx_tokens: int = 0,
        system: str = "",
    ) -> None:
        self.model, self.settings, self.screen = model, settings, screen
        self.layout = Layout(model.template, model.tokenizer, n_remembered=1024)
        self.window = min(model.block_size, max_ctx_tokens or model.block_size)
        self.conversation = Conversation()
        self.last: Generation | None = None  # how the last reply was drawn, if in this session
        self.tokens_drawn = 0  # by all replies
        self.tinted = False  # whether replies show how likely each token was
        self.draft = ""  # a message to be edited next
        self.finished = False  # whether the user wants to leave
        self.choose: Chooser | None = None  # shows alternatives; None where the terminal cannot
        self._hidden_said = 0
        self._size = lru_cache(maxsize=1)(partial(encode_known, self.model.tokenizer))
        # The screen asks for its size at every key that is pressed.
        self._built = lru_cache(maxsize=2)(
            partial(build_prompt, layout=self.layout, window=self.window)
        )
        self.set_system(system)

    # --- what the model sees ---------------------------------------------------------------------

    @property
    def context_tokens(self) -> int:
        """How much of the window is taken; before a message, what a short one would take."""
        if self.last:
            return min(self.last.context_tokens, self.window)
        with suppress(ChatTemplateError):  # which is said when a message is sent
            return len(self.prompt(self.conversation.asked(SHORTEST.message)).ids)
        return 0

    def status_of(self, message: str) -> list[str]:
        """What to know while a message is typed: how much fits, or does not; whom it goes to."""
        n_tokens = 0 if message.startswith("/") else len(self._size(message))
        room = self.window - min(self.settings.max_new_tokens, self.window // 2)
        room -= self._frame - 1  # the shortest message has one token
        if n_tokens > room:
            return [f"{counted(n_tokens - room, 'token')} too long: the beginning will not be seen"]
        taken = min(self.context_tokens + n_tokens, self.window)
        return [f"ctx {taken}/{self.window}", self.model.name, "/help"]

    def prompt(self, conversation: Conversation) -> Prompt:
        """What the model is given for a reply to the last turn of a conversation."""
        return self._built(conversation, max_new_tokens=self.settings.max_new_tokens)

    def set_system(self, text: str) -> None:
        """Pin a text in front of the conversation; a `UsageError` if there is no room for it."""
        # However many tokens a reply may take, half of the window is left; a message needs a few.
        room = self.window - self.window // 2 - self.window // 16
        if len(self.layout.parts(messages_of("", (), SHORTEST)).ids) > room:
            larger = " or a larger --max_ctx_tokens" if self.window < self.model.block_size else ""
            raise UsageError(
                f"a window of {counted(self.window, 'token')} is too small to talk in; "
                f"use a model with a larger block_size{larger}"
            )
        size = len(encode_known(self.model.tokenizer, text))
        try:
            taken = len(self.layout.parts(messages_of(text, (), SHORTEST)).ids)
        except ChatTemplateError as error:
            raise UsageError(f"{error}; leave the system text out") from error
        if text and taken > room:
            raise UsageError(
                f"the system text takes {size} tokens, and this window of {self.window} has room "
                f"for {max(0, size + room - taken)}; shorten it"
            )
        self._tell_unknown(text)
        self._frame = taken  # by all but the turns
        self.conversation = replace(self.conversation, system=text)
        self.last = None

    # --- turns -----------------------------------------------------------------------------------

    def send(self, message: str) -> None:
        """Say something and let the model answer."""
        self.ask(message)
        self._reply(self.next_seed())

    def ask(self, message: str) -> None:
        """Say something; a `UsageError` if the model can read nothing of it."""
        if len(message) > MAX_MESSAGE_CHARACTERS:
            cut = len(message) - MAX_MESSAGE_CHARACTERS
            dropped = counted(cut, "character")
            self.screen.notice(f"the message is too long; its beginning is cut ({dropped})")
            message = message[cut:]
        if not message.strip():
            raise UsageError("nothing sent: the message is empty")
        shown = self.layout.shown(message)
        if not known_part(self.model.tokenizer, shown).strip():
            raise UsageError("nothing sent: the model knows none of these characters")
        self._tell_unknown(shown)
        self.conversation = self.conversation.asked(message)

    def retry(self, seed: int | None = None) -> None:
        """Answer the last message again, with a new seed or the one given."""
        self.conversation = self.conversation.answered(None)
        self._reply(_new_seed() if seed is None else seed)

    def extend(self) -> None:
        self._reply(_new_seed())

    def swap(self, place: int, token: int) -> None:
        """Put another token at a place of the last reply, and go on from there."""
        assert self.last is not None  # noqa: S101 - the command is not available without
        *before, drawn = self.last.tokens[: place + 1]
        decoder = self.model.tokenizer.stream_decoder()
        for earlier in before:
            decoder.push(earlier.id)
        other = replace(
            drawn, id=token, text=decoder.push(token), logprob=dict(drawn.alternatives).get(token)
        )
        self._reply(_new_seed(), kept=[*before, other])

    def resume(self, conversation: Conversation) -> None:
        """Go on with another conversation, or with less of this one; raises as `set_system`."""
        if conversation.system != self.conversation.system:
            self.set_system(conversation.system)
        self.conversation = conversation
        self.last, self._hidden_said = None, 0

    # --- replies ---------------------------------------------------------------------------------

    def next_seed(self) -> int:
        """The seed that the user has set, or a new one."""
        return _new_seed() if self.settings.seed is None else self.settings.seed

    def fresh_reply(self, settings: SamplingArguments, seed: int) -> Generation:
        """A reply to the last message, not drawn yet; the conversation stays as it is."""
        prompt = self.prompt(self.conversation.answered(None))
        self._tell_hidden(prompt)
        return self._generation(prompt, settings, seed)

    def _generation(
        self, prompt: Prompt, settings: SamplingArguments, seed: int, **begun: Any
    ) -> Generation:
        """A reply to the last message, or the rest of it; see `Generation` for what has `begun`."""

        def onward(text: str, n_tokens: int) -> Prompt:
            conversation = self.conversation.answered(Reply(text=text))
            return self._built(conversation, max_new_tokens=n_tokens)

        return Generation(
            self.model, prompt, self.layout,
            settings=settings, seed=seed, onward=onward, **begun,
        )  # fmt: skip

    def run(self, generation: Generation, write: "Callable[[Token], object]") -> ModelError | None:
        """Draw a reply; returns the error if the model could not go on.

        Ctrl-C ends it after the token being drawn, a second Ctrl-C at once.
        """
        try:
            with interruptible() as interrupted:
                generation.run(write, interrupted=interrupted)
        except KeyboardInterrupt:
            pass
        except ModelError as error:
            return error
        return None

    def _reply(self, seed: int, *, kept: "Sequence[Token]" = ()) -> None:
        """Answer the last message, or go on with the answer, from its `kept` tokens if any."""
        turn = self.conversation.turns[-1]
        before, seeds = (turn.reply.text, turn.reply.seeds) if turn.reply else ("", ())
        if kept and self.last:
            before, prompt = self.last.before, self.last.prompt
        else:
            prompt = self.prompt(self.conversation)
        self._tell_hidden(prompt)
        writer = Writer(self.screen, tinted=self.tinted)
        writer.recall(before)
        last = self._generation(prompt, self.settings, seed, before=before, kept=kept)
        problem = self.run(last, writer.token)
        if last.finish == "stopped":
            writer.mark("(stopped)")
        writer.end()
        text = before + last.text
        text = text.rstrip() if last.finish == "stop" else text
        reply = Reply(text=text, finish=last.finish, seeds=(*seeds, seed))
        self.conversation = self.conversation.answered(reply if text else None)
        self.last = last
        self.tokens_drawn += last.n_drawn
        if problem:
            self.screen.problem(f"the model could not go on: {problem}")
        elif not last.text and last.finish != "stopped":
            self.screen.remark("(nothing more)" if before else "(no reply)")
        self.screen.summary(*self.summary_of(last))

    def summary_of(self, reply: Generation) -> list[str]:
        """A reply in numbers: tokens, speed, seed, context, how it ended."""
        speed = reply.n_drawn / reply.seconds if reply.seconds else 0.0
        return [
            counted(reply.n_drawn, "token"),
            f"{speed:.0f} tok/s",
            f"seed {reply.seed}",
            f"ctx {min(reply.context_tokens, self.window)}/{self.window}",
            _ENDINGS[reply.finish],
        ]

    def _tell_hidden(self, prompt: Prompt) -> None:
        if prompt.hidden_turns > self._hidden_said:
            turns = counted(prompt.hidden_turns, "earlier turn")
            verb = "is" if prompt.hidden_turns == 1 else "are"
            self.screen.notice(f"{turns} {verb} no longer visible to the model")
        self._hidden_said = prompt.hidden_turns
        if prompt.cut_tokens:
            self.screen.notice(
                f"too long for the window: the model does not see the first "
                f"{counted(prompt.cut_tokens, 'token')} of this turn"
            )

    def _tell_unknown(self, text: str) -> None:
        if unknown := unknown_characters(self.model.tokenizer, text):
            named = named_characters(unknown)
            self.screen.notice(f"left out, as this model does not know them: {named}")


def _new_seed() -> int:
    return secrets.randbelow(_LARGEST_DRAWN_SEED)

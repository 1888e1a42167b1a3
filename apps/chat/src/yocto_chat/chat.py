"""Chat: a conversation with a model that is under way, and all that can be done with it.

What is said is in `conversation.py`, what is shown in `screen.py`, what is typed in `reader.py`;
here they meet. Every method leaves a conversation that can go on, whatever went wrong.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from yocto_cli.arguments import UsageError
from yocto_cli.sampling_arguments import SamplingArguments
from yocto_cli.screen.terminal import counted, one_line
from yocto_model import Token

from yocto_chat.characters import known_part, unknown_characters
from yocto_chat.chat_model import ChatModel
from yocto_chat.conversation import Conversation, Finish, Prompt, Reply, build_prompt
from yocto_chat.layout import frame_tokens, layout_for
from yocto_chat.screen import Screen
from yocto_chat.speaking import let_speak
from yocto_chat.take import Take

MAX_MESSAGE_CHARACTERS = 100_000
_MOST_NAMED = 10
_LARGEST_DRAWN_SEED = 1_000_000  # short enough to be typed again

_ENDINGS: dict[Finish, str] = {
    "stop": "stop",
    "limit": "limit: /continue",
    "window": "window full: /continue",
    "stopped": "stopped: /continue",
}

#: Lets the user look at a take's alternatives; the place and the id to put there, or None.
Chooser = Callable[[Take], tuple[int, int] | None]


class Chat:
    """Talks with one model.

    Args:
        model: who answers.
        settings: how.
        screen: where it is shown.
        max_ctx_tokens: the window, if it is to be smaller than the model's; 0 for the model's.
        system: a text that stays in front of the conversation.

    Attributes:
        conversation: what has been said.
        settings: how the next reply will be drawn.
        take: the last reply as it was drawn, as long as it is the last thing said.
        tinted: whether replies show how likely each token was.
        draft: a message to be edited next.
        finished: whether the user wants to leave.
        choose: shows alternatives; None where the terminal cannot.
        tokens_drawn: by all replies so far.

    Raises:
        UsageError: the window is too small, or the system text too long for it.
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
        self.layout = layout_for(model.tokenizer)
        self.window = min(model.block_size, max_ctx_tokens or model.block_size)
        self.conversation = Conversation()
        self.take: Take | None = None
        self.tinted = self.finished = False
        self.draft = ""
        self.choose: Chooser | None = None
        self.tokens_drawn = 0
        self._before_take = ""  # what the last reply said before `take` began
        self._hidden_said = 0
        self.set_system(system)

    # --- what the model sees ---------------------------------------------------------------------

    @property
    def context_tokens(self) -> int:
        """How much of the window is taken."""
        if self.take:
            return min(self.take.context_tokens, self.window)
        total = len(self.layout.opening(self.conversation.system))
        for turn in reversed(self.conversation.turns):
            if turn.answered:
                size = len(self.layout.past(turn))
                if total + size > self.window:
                    break
                total += size
        return total

    def set_system(self, text: str) -> None:
        """Pin a text in front of the conversation; "" for none.

        Raises:
            UsageError: it leaves too little of the window for a message.
        """
        frame = len(self.layout.opening("")) + frame_tokens(self.layout)
        # However many tokens a reply may take, half of the window is left; a message needs a few.
        room = self.window - self.window // 2 - frame
        if room < self.window // 16 + 1:
            raise UsageError(
                f"a window of {self.window} tokens is too small to talk in; "
                f"use a model with a larger block_size{self._or_a_larger_limit()}"
            )
        size = len(self.layout.opening(text)) - len(self.layout.opening(""))
        if size > (allowed := room - self.window // 16):
            raise UsageError(
                f"the system text takes {size} tokens, and this window of {self.window} has room "
                f"for {max(0, allowed)}; shorten it"
            )
        self._tell_unknown(text)
        self.conversation = replace(self.conversation, system=text)
        self.take = None

    def _or_a_larger_limit(self) -> str:
        return ", or a larger --max_ctx_tokens" if self.window < self.model.block_size else ""

    # --- turns -----------------------------------------------------------------------------------

    def send(self, message: str) -> None:
        """Say something and let the model answer.

        Raises:
            UsageError: there is nothing in it that the model can read.
        """
        self.ask(message)
        self._speak(self.next_seed())

    def ask(self, message: str) -> None:
        """Say something.

        Raises:
            UsageError: there is nothing in it that the model can read.
        """
        if len(message) > MAX_MESSAGE_CHARACTERS:
            cut = len(message) - MAX_MESSAGE_CHARACTERS
            self.screen.notice(f"the message is too long; its first {cut:,} characters are cut")
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
        self._speak(self._drawn_seed() if seed is None else seed)

    def extend(self) -> None:
        """Go on with the last reply."""
        self._speak(self._drawn_seed())

    def swap(self, place: int, token: int) -> None:
        """Put another token at a place of the last take, and go on from there."""
        assert self.take is not None  # noqa: S101 - the command is not available without
        drawn = self.take.tokens[place]
        decoder = self.model.tokenizer.stream_decoder()
        for earlier in self.take.tokens[:place]:
            decoder.push(earlier.id)
        other = replace(
            drawn, id=token, text=decoder.push(token), logprob=dict(drawn.alternatives).get(token)
        )
        kept = [*self.take.tokens[:place], other]
        self._speak(self._drawn_seed(), kept=kept)

    def undo(self, n_turns: int) -> None:
        """Forget the last turns."""
        self.conversation = self.conversation.without_last(n_turns)
        self._forget_take()

    def edit(self) -> None:
        """Take the last message back and offer it for editing."""
        self.draft = self.conversation.turns[-1].message
        self.undo(1)

    def reset(self) -> None:
        """Forget all turns; system text and settings stay."""
        self.undo(len(self.conversation.turns))

    def resume(self, conversation: Conversation) -> None:
        """Go on with another conversation.

        Raises:
            UsageError: its system text is too long.
        """
        self.set_system(conversation.system)
        self.conversation = conversation
        self._forget_take()

    # --- speaking --------------------------------------------------------------------------------

    def next_seed(self) -> int:
        """The seed that the user has set, or a new one."""
        return self._drawn_seed() if self.settings.seed is None else self.settings.seed

    @staticmethod
    def _drawn_seed() -> int:
        return secrets.randbelow(_LARGEST_DRAWN_SEED)

    def take_of_last_message(self, settings: SamplingArguments, seed: int) -> Take:
        """A reply to the last message from its beginning; nothing here changes by it."""
        prompt = self._prompt(self.conversation.answered(None), settings)
        self._tell_hidden(prompt)
        return self._take(prompt, settings, seed, before="")

    def _speak(self, seed: int, *, kept: Sequence[Token] = ()) -> None:
        """Let the model answer the last message, or go on with its answer.

        Args:
            seed: of the reply.
            kept: tokens of the last take to go on from.
        """
        turn = self.conversation.turns[-1]
        before, seeds = (turn.reply.text, turn.reply.seeds) if turn.reply else ("", ())
        if kept and self.take:
            before, prompt = self._before_take, self.take.prompt
        else:
            prompt = self._prompt(self.conversation, self.settings)
        self._tell_hidden(prompt)
        writer = self.screen.reply(tinted=self.tinted)
        writer.recall(before)
        take = self._take(prompt, self.settings, seed, before=before, kept=kept)
        writer.write(take.spans)
        problem = let_speak(take, writer.write)
        if take.finish == "stopped":
            writer.mark("(stopped)")
        writer.end()
        self._keep(take, before, (*seeds, seed))
        if problem:
            self.screen.problem(f"the model could not go on: {problem}")
        elif not take.text and take.finish != "stopped":
            self.screen.line("(nothing more)" if before else "(no reply)", dim=True)
        self.screen.facts(*self.facts_of(take))

    def _prompt(self, conversation: Conversation, settings: SamplingArguments) -> Prompt:
        return build_prompt(
            conversation,
            self.layout,
            window=self.window,
            max_new_tokens=settings.max_new_tokens,
        )

    def _take(
        self,
        prompt: Prompt,
        settings: SamplingArguments,
        seed: int,
        *,
        before: str,
        kept: Sequence[Token] = (),
    ) -> Take:
        return Take(
            self.model,
            prompt,
            settings=settings,
            seed=seed,
            stops=self.layout.stops,
            begins_line=not before and not self.layout.has_turn_tokens,
            kept=kept,
        )

    def _keep(self, take: Take, before: str, seeds: tuple[int, ...]) -> None:
        text = before + take.text
        finish = take.finish or "stopped"
        reply = Reply(text=text.rstrip() if finish == "stop" else text, finish=finish, seeds=seeds)
        self.conversation = self.conversation.answered(reply if reply.text else None)
        self.take, self._before_take = take, before
        self.tokens_drawn += take.n_drawn

    def _forget_take(self) -> None:
        self.take, self._before_take, self._hidden_said = None, "", 0

    # --- saying what happened --------------------------------------------------------------------

    def facts_of(self, take: Take) -> list[str]:
        """A take in numbers: tokens, speed, seed, context, how it ended."""
        return [
            counted(take.n_drawn, "token"),
            f"{take.tokens_per_second:.0f} tok/s",
            f"seed {take.seed}",
            f"ctx {min(take.context_tokens, self.window)}/{self.window}",
            _ENDINGS[take.finish or "stopped"],
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
        unknown = unknown_characters(self.model.tokenizer, text)
        if unknown:
            named = ", ".join(f"'{one_line(c)}' (U+{ord(c):04X})" for c in unknown[:_MOST_NAMED])
            more = len(unknown) - _MOST_NAMED
            rest = f" and {more} more" if more > 0 else ""
            self.screen.notice(f"left out, as this model does not know them: {named}{rest}")

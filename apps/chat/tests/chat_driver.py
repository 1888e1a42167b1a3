"""The chat on a real terminal, with a model that answers by what it is told; run by tests.

python chat_driver.py, in a terminal. Messages that it knows:
    count    counts without end; a little time passes between tokens
    slow     "begun", then nothing until Ctrl-C has been pressed twice, or a file `go` appears
    hostile  escape sequences, markup and half characters
    long     sixty words
and anything else is repeated.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

from yocto_chat.chat import Chat
from yocto_chat.generation import ChatModel
from yocto_chat.screen import Screen
from yocto_chat.session import Talk
from yocto_cli.command import run_command
from yocto_cli.model_arguments import SamplingArguments
from yocto_model import TextGenerator, Token
from yocto_tokenizers import CharTokenizer

HOSTILE = ("\x1b", "[2J", "\x1b]0;pwned\a", "[/x]", ":smile:", "\ud83d", "\u202e", "\r", " end")


class Actor(Iterator[Token]):
    """Generator and stream in one: answers by the last message of its prompt."""

    finish_reason = "eos"
    end_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer

    def stream(self, prompt: Sequence[int], max_new_tokens: int, **_options: Any) -> "Actor":
        text = self._tokenizer.decode(list(prompt))
        message, _, begun = text.rpartition("User: ")[2].partition("\nAssistant:")
        self.tokens: list[Token] = []
        self._texts = islice(texts(message, begun), max_new_tokens)
        return self

    def __next__(self) -> Token:
        text = next(self._texts)
        id_ = self._tokenizer.stoi.get(text, 0)
        others = tuple((other, -2.0) for other in range(1, 8) if other != id_)
        self.tokens.append(Token(id=id_, text=text, alternatives=((id_, -0.5), *others)))
        return self.tokens[-1]


def texts(message: str, begun: str) -> Iterator[str]:
    if message == "count":
        for number in count(int((begun.split() or ["0"])[-1]) + 1):
            yield f" {number}"
            time.sleep(0.01)
    elif message == "slow":
        yield " begun "
        while not Path("go").exists():
            time.sleep(0.01)
        yield "and done"
    elif message == "hostile":
        yield from HOSTILE
    elif message == "long":
        yield from (f" word{number}" for number in range(60))
    else:
        yield from f" You said {message}."


def main(_argv: list[str]) -> None:
    Path("pid").write_text(str(os.getpid()))
    tokenizer = CharTokenizer("\n" + "".join(map(chr, range(0x20, 0x7F))))
    generator = cast("TextGenerator", Actor(tokenizer))
    model = ChatModel(
        generator=generator, tokenizer=tokenizer, block_size=2_000, name="actor", step=1,
        line="driver",
        n_parameters=1,
    )  # fmt: skip
    chat = Chat(model, SamplingArguments(max_new_tokens=900), screen=Screen(sys.stdout))
    talk = Talk(chat.screen, lambda: chat.model, lambda _model: chat, name="actor")
    talk.converse(talk.reader(keep_history=True))


if __name__ == "__main__":
    sys.exit(run_command(main, prog="yocto-chat", argv=[]))

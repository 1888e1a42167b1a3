"""A generator that says what the script has, and conversations with it."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from yocto_chat.chat import Chat
from yocto_chat.commands import act
from yocto_chat.generation import ChatModel
from yocto_chat.screen import Screen
from yocto_cli.model_arguments import SamplingArguments
from yocto_model import TextGenerator, Token
from yocto_tokenizers import PLAIN, TURNS, CharTokenizer, ChatTemplate

ALPHABET = "\n" + "".join(map(chr, range(0x20, 0x7F)))


@dataclass
class Stream(Iterator[Token]):
    """As much of a `TextStream` as the chat uses."""

    drawn: Iterator[Token]
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None

    def __next__(self) -> Token:
        self.tokens.append(next(self.drawn))
        return self.tokens[-1]


@dataclass
class Scripted:
    """A generator that says one script after another; a script is the texts of its tokens."""

    tokenizer: CharTokenizer
    scripts: list[Sequence[str]]
    calls: list[dict[str, Any]] = field(default_factory=list)  # what it was asked
    end_ids: frozenset[int | None] = frozenset()
    before_token: Callable[[int], None] = lambda _index: None  # gets the index of each

    def stream(self, prompt: Sequence[int], max_new_tokens: int, **options: Any) -> Stream:
        self.calls.append({"prompt": list(prompt), "max": max_new_tokens, **options})
        script = self.scripts.pop(0) if self.scripts else ()
        result = Stream(iter(()), finish_reason=None if max_new_tokens else "length")
        result.drawn = self._drawn(result, script, max_new_tokens)
        return result

    def prompts(self) -> list[str]:
        """The texts of all prompts so far."""
        return [self.tokenizer.decode(call["prompt"]) for call in self.calls]

    def _drawn(self, result: Stream, script: Sequence[str], limit: int) -> Iterator[Token]:
        for index in range(limit):
            self.before_token(index)
            if index == len(script):
                result.finish_reason = "eos"
                return
            yield self.token(script[index])
        result.finish_reason = "length"

    def token(self, text: str) -> Token:
        id_ = self.tokenizer.stoi.get(text, 0)
        others = tuple((other, -2.0 - other / 100) for other in range(1, 10) if other != id_)
        return Token(id=id_, text=text, logprob=-0.5, alternatives=((id_, -0.5), *others[:7]))


class Talk:
    """A chat with a scripted generator, and what its screen shows."""

    def __init__(self, chat: Chat, generator: Scripted, out: io.StringIO) -> None:
        self.chat, self.generator, self._out = chat, generator, out

    @property
    def said(self) -> list[str | None]:
        """The replies; None where there was none."""
        turns = self.chat.conversation.turns
        return [turn.reply.text if turn.reply else None for turn in turns]

    def do(self, *lines: str) -> None:
        """Send messages and commands."""
        for line in lines:
            act(self.chat, line)

    @property
    def shown(self) -> str:
        """Everything written so far."""
        return self._out.getvalue()


@pytest.fixture(scope="session")
def tokenizer() -> CharTokenizer:
    """Printable ASCII and the newline."""
    return CharTokenizer(ALPHABET)


@pytest.fixture(scope="session")
def chat_tokenizer() -> CharTokenizer:
    """The same with the tokens of a chat."""
    names = ["<|system|>", "<|user|>", "<|assistant|>", "<|im_end|>", "<|endoftext|>"]
    return CharTokenizer(ALPHABET, special_tokens=names)


@pytest.fixture(scope="session")
def make_talk(tokenizer: CharTokenizer) -> Callable[..., Talk]:
    """Makes a chat whose model says the scripts given, one after the other."""

    def make(
        *scripts: Sequence[str],
        block_size: int = 512,
        speaks: CharTokenizer = tokenizer,
        template: str = PLAIN,
        system: str = "",
        max_ctx_tokens: int = 0,
        out: io.StringIO | None = None,
        **settings: Any,
    ) -> Talk:
        asked_by = ChatTemplate(template)
        ends = {speaks.eos_id, asked_by.end_id(speaks)} - {None}
        generator = Scripted(speaks, list(scripts), end_ids=frozenset(ends))
        model = ChatModel(
            generator=cast("TextGenerator", generator), tokenizer=speaks, block_size=block_size,
            name="test-run", line="test-run step 7", step=7, n_parameters=1234, sha256="ab" * 32,
            template=asked_by,
        )  # fmt: skip
        out = Utf8IO() if out is None else out
        chat = Chat(
            model, SamplingArguments(**settings), screen=Screen(out), system=system,
            max_ctx_tokens=max_ctx_tokens,
        )  # fmt: skip
        return Talk(chat, generator, out)

    return make


class Utf8IO(io.StringIO):
    """A stream that can show everything."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


class TerminalIO(Utf8IO):
    """A stream that says it is a terminal as well."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal_out(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A stream that takes escape sequences and colours."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return TerminalIO()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: CharTokenizer) -> Path:
    """A model from elsewhere: a Hugging Face folder whose template brings a system text with it."""
    import torch
    from yocto_model import GPT, GPTConfig

    path = tmp_path_factory.mktemp("elsewhere") / "speaker"
    config = GPTConfig(
        vocab_size=chat_tokenizer.vocab_size, block_size=128, n_layer=1, n_head=2, n_embd=16
    )
    GPT(config, generator=torch.Generator().manual_seed(0)).save(path)
    chat_tokenizer.save(path)
    default = "{% if messages[0].role != 'system' %}<|system|>Be kind.<|im_end|>{% endif %}"
    (path / "chat_template.jinja").write_text(default + TURNS)
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one run, `tiny`, of one step; its model is untrained."""
    import torch
    from yocto_model import GPT, GPTConfig
    from yocto_train import save_checkpoint

    root = tmp_path_factory.mktemp("work") / "checkpoints"
    tokenizer = CharTokenizer(ALPHABET)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=128, n_layer=1, n_head=2, n_embd=16
    )
    (root / "tiny").mkdir(parents=True)
    model = GPT(config, generator=torch.Generator().manual_seed(0))
    save_checkpoint(
        root / "tiny", model, {"step": 3}, tokenizer=tokenizer, data={}, val_loss=4.5,
        environment={},
    )  # fmt: skip
    return root

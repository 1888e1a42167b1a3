"""The command: flags, pipes, exit codes, and what is imported when."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yocto_chat.app import ChatArguments, ConversationArguments, converse, main
from yocto_chat.opening import opening
from yocto_cli.arguments import dump_toml, load
from yocto_cli.fields import flags_of
from yocto_cli.sampling_arguments import SamplingArguments
from yocto_model import SamplingError

MakeTalk = Callable[..., Any]
Run = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: str


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], checkpoints: Path
) -> Run:
    """The command in this process, with something piped into it."""

    def runner(*words: str, stdin: bytes = b"Hello", ckpt: bool = True) -> Result:
        with io.TextIOWrapper(io.BytesIO(stdin)) as pipe:
            monkeypatch.setattr("sys.stdin", pipe)
            named = ["--ckpt_dir", str(checkpoints)] if ckpt else []
            code = main([*named, *words])
        out, err = capfdbinary.readouterr()
        return Result(code, out, err.decode())

    return runner


def refused(result: Result) -> str:
    """It must have ended with 2 and one safe line on stderr, which is returned."""
    assert (result.code, result.out) == (2, b""), result
    line = result.err.removesuffix("\n")
    assert line.isprintable(), line
    assert line.startswith("yocto-chat: error: ")
    assert len(line) <= 320
    return line


def test_the_reply_goes_to_stdout_and_the_talk_to_stderr(run: Run) -> None:
    """The same seed gives the same bytes; the facts are on stderr, the seed among them."""
    first = run("--seed", "7", "--max_new_tokens", "30")
    again = run("--seed", "7", "--max_new_tokens", "30")
    other = run("--seed", "8", "--max_new_tokens", "30")
    assert first.code == 0
    assert first.out == again.out != other.out
    assert first.out.endswith(b"\n")
    assert 20 <= len(first.out) <= 31
    assert "seed 7 · ctx " in first.err
    assert "\x1b" not in first.err


def test_all_of_stdin_is_one_message(run: Run) -> None:
    """Lines, commands and slashes alike; the last line end is no part of it."""
    whole = run("--seed", "7", stdin=b"/exit\nand more\n")
    assert (whole.code, whole.out != b"\n") == (0, True)
    assert whole.out == run("--seed", "7", stdin=b"/exit and more").out


def test_bytes_that_are_no_text(run: Run) -> None:
    """What is not UTF-8 becomes U+FFFD, with a notice; what is no text at all is refused."""
    result = run("--seed", "7", stdin=b"caf\xe9 \xf0\x9f")
    assert result.code == 0
    assert "- what is not UTF-8 in the message was replaced by U+FFFD -" in result.err
    assert "does not know them: '\ufffd' (U+FFFD)" in result.err
    assert "stdin is binary" in refused(run(stdin=b"\x7fELF\0"))
    assert "more than 1 MiB" in refused(run(stdin=b"x" * ((1 << 20) + 1)))
    assert "stdin is empty" in refused(run(stdin=b" \n"))
    assert "knows none of these characters" in refused(run(stdin="é".encode()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temprature", "1"], "did you mean --temperature?"),
        (["--max_ctx_tokens", "-1"], "--max_ctx_tokens must be at least 0"),
        (["--max_ctx_tokens", "20"], "too small to talk in"),
        (["--temperature", "-1", "--top_p", "3"], "2 problems: (1) --temperature must be"),
        (["--system_prompt", "x" * 200], "the system text takes 202 tokens"),
        (["--ckpt", "no/such\x1brun"], "does not exist"),
        (["--config", "no.toml"], "no.toml"),
        (["--mode", "token"], "--mode token, but"),
        (["hello"], "unexpected argument 'hello'"),
    ],
)
def test_what_must_be_changed(run: Run, words: Sequence[str], message: str) -> None:
    """Found before anything is said: exit code 2, one line."""
    assert message in refused(run(*words))


def test_without_a_model(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The line says how to get one."""
    monkeypatch.chdir(tmp_path)
    assert "train one first: uv run yocto-train" in refused(run(ckpt=False))


def test_a_broken_model_is_failed_work(
    run: Run, make_talk: MakeTalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits from which nothing can be drawn: exit code 1."""
    talk = make_talk("abc")

    def broken(_index: int) -> None:
        raise SamplingError("the model's output is not finite")

    talk.speaker.before_token = broken
    monkeypatch.setattr("yocto_chat.chat_model.open_model", lambda _named: talk.chat.model)
    result = run()
    assert result.code == 1
    assert "error: the model could not answer: the model's output is not finite\n" in result.err


def test_a_smaller_window_is_kept_to(run: Run) -> None:
    """--max_ctx_tokens bounds prompt and reply; more than the model has is said."""
    small = run("--max_ctx_tokens", "64", "--stop", "@@@@")
    assert "/64 · " in small.err
    large = run("--max_ctx_tokens", "999")
    assert "- --max_ctx_tokens 999: the model sees 128 at most -" in large.err
    assert "/128 · " in large.err


def test_the_opening_is_short_and_honest(make_talk: MakeTalk) -> None:
    """Who speaks, at which step, how large; what it is; and where it was better."""
    talk = make_talk(max_ctx_tokens=256)
    facts, remarks = opening(talk.chat)
    assert facts == ["test-run", "step 7", "0.00M parameters", "window 256 of 512"]
    assert remarks[0] == "A small plain-text model: it continues a dialogue, and makes things up."
    assert max(map(len, remarks)) < 80
    object.__setattr__(talk.chat.model, "best_step", 5)
    assert "Its loss was lowest at step 5: --ckpt " in opening(talk.chat)[1][1]


class Keys:
    """A reader that gives lines, and raises what is no line."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = iter(lines)

    def read(self) -> str:
        line = next(self._lines)
        if isinstance(line, str):
            return line
        raise line


def test_the_loop(make_talk: MakeTalk) -> None:
    """Ctrl-C on an empty line says how to leave; errors are one line; Ctrl-D and /exit leave."""
    talk = make_talk(" ok\n\n")
    converse(talk.chat, Keys(KeyboardInterrupt, "hi", "", "/nothing", EOFError))
    assert "- Ctrl-D or /exit leaves -\n" in talk.shown
    assert "ok\n" in talk.shown
    assert "! nothing sent: the message is empty\n" in talk.shown
    assert "! no command is called /nothing; " in talk.shown
    converse(talk.chat, Keys("/exit", "never read"))
    assert talk.chat.finished


def test_every_flag_can_be_parsed() -> None:
    """Both spellings; the sampling flags are those of the other commands."""
    assert {field.name for field in fields(SamplingArguments)} < set(flags_of(ChatArguments))
    for spelling in ("--max_ctx_tokens", "--max-ctx-tokens"):
        arguments = load(ChatArguments, [spelling, "9", "--no_history"], prog="yocto-chat")
        assert arguments.conversation == ConversationArguments(max_ctx_tokens=9, history=False)


@pytest.mark.property
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    system=st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    stop=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)),
    temperature=st.floats(0, 1e3),
    seed=st.none() | st.integers(0, 2**63 - 1),
)
def test_settings_can_be_kept_in_a_file(
    tmp_path: Path, system: str, stop: list[str], temperature: float, seed: int | None
) -> None:
    """--config reads what `dump_toml` writes, whatever the texts hold."""
    arguments = ChatArguments(
        conversation=ConversationArguments(system_prompt=system),
        sampling=SamplingArguments(stop=tuple(stop), temperature=temperature, seed=seed),
    )
    path = tmp_path / "chat.toml"
    path.write_text(dump_toml(arguments), encoding="utf-8", newline="")
    assert arguments == load(ChatArguments, ["--config", str(path)], prog="yocto-chat")


@pytest.mark.parametrize("words", [["--help"], ["--temprature", "1"], ["--config", "nowhere"]])
def test_help_and_typing_errors_import_nothing_heavy(words: list[str]) -> None:
    """torch, rich and prompt_toolkit come in only after the words have been understood."""
    program = (
        "import sys; from yocto_chat.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'prompt_toolkit', 'rich.live', 'yocto_model'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")


def test_a_reader_that_leaves_is_no_error(checkpoints: Path) -> None:
    """`yocto-chat | head -c 1` ends quietly, with 0."""
    read, write = os.pipe()
    os.close(read)
    program = "import sys; from yocto_chat.app import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "--ckpt_dir", str(checkpoints)],
        stdout=write, stderr=subprocess.PIPE, input=b"hello", check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)

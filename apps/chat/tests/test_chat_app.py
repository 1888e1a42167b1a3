"""The command: flags, pipes, exit codes, and what is imported when."""

import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from yocto_chat.app import ChatArguments, ConversationArguments, main
from yocto_chat.session import Talk as Session
from yocto_chat.session import introduce, suited
from yocto_cli.arguments import load
from yocto_model import GPT, GPTConfig, SamplingError
from yocto_tokenizers import CharTokenizer
from yocto_train import Run as TrainingRun
from yocto_train import find_model, save_checkpoint

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


def test_what_is_piped_in(run: Run) -> None:
    """All of it is one message; what is not UTF-8 becomes U+FFFD; what is not text is refused."""
    whole = run("--seed", "7", stdin=b"/exit\nand more\n")
    assert (whole.code, whole.out != b"\n") == (0, True)
    assert whole.out == run("--seed", "7", stdin=b"/exit and more").out
    assert run("--seed", "7", stdin=b"exit").out.strip()  # here it is no command
    result = run("--seed", "7", stdin=b"caf\xe9 \xf0\x9f")
    assert result.code == 0
    assert "- bytes that are not UTF-8 were replaced by U+FFFD -" in result.err
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
        (["--temperature", "-1", "--top_p", "3"], "--top_p must be a number above 0"),
        (["--system_prompt", "x" * 200], "the system text takes 200 tokens"),
        (["--ckpt", "no/such\x1brun"], "does not exist"),
        (["--config", "no.toml"], "no.toml"),
        (["--mode", "token"], "--mode token, but"),
        (["hello"], "unexpected argument hello"),
    ],
)
def test_what_must_be_changed(run: Run, words: Sequence[str], message: str) -> None:
    """Found before anything is said: exit code 2, one line."""
    assert message in refused(run(*words))


def test_without_a_model(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The line says how to get one."""
    monkeypatch.chdir(tmp_path)
    assert "train one: uv run yocto-train" in refused(run(ckpt=False))


def test_a_damaged_checkpoint_is_not_passed_over_in_silence(
    run: Run, checkpoints: Path, tmp_path: Path
) -> None:
    """An older one answers, and a line says what is wrong with the newest."""
    shutil.copytree(checkpoints / "tiny", tmp_path / "tiny", symlinks=True)
    newest = tmp_path / "tiny" / "step-00000004"
    shutil.copytree(next((tmp_path / "tiny").glob("step-*")), newest)
    result = run("--ckpt", str(tmp_path / "tiny"))
    assert result.code == 0
    assert "step-00000004" in result.err


@pytest.mark.parametrize(("template", "expected"), [(None, 1), ("{{ messages }}", 2)])
def test_which_step_of_a_run_speaks(
    template: str | None, expected: int, tokenizer: CharTokenizer, tmp_path: Path
) -> None:
    """Of prose the one with the lowest loss, of chats the last; a step that is named, always."""
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1, n_head=1, n_embd=8
    )
    run = TrainingRun(tmp_path / "run")
    run.create()
    for step in (1, 2):
        save_checkpoint(
            run.path, GPT(config), {"step": step}, tokenizer=tokenizer, data={},
            val_loss=None, environment={}, template=template,
        )  # fmt: skip
        run.point("best" if step == 1 else "latest", run.step_directory(step))
    for ckpt, step in ((None, expected), (run.path, expected), (run.path / "latest", 2)):
        named = None if ckpt is None else str(ckpt)
        found = suited(find_model(named, root=tmp_path), named)
        assert found.checkpoint is not None
        assert found.checkpoint.step == step


def test_a_broken_model_is_failed_work(
    run: Run, make_talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits from which nothing can be drawn: exit code 1."""
    talk = make_talk("abc")

    def broken(_index: int) -> None:
        raise SamplingError("the model's output is not finite")

    talk.generator.before_token = broken
    monkeypatch.setattr("yocto_chat.generation.open_model", lambda *_named, **_: talk.chat.model)
    result = run()
    assert result.code == 1
    assert "error: the model could not answer: the model's output is not finite\n" in result.err


def test_a_folder_from_elsewhere_comes_with_its_template(run: Run, folder: Path) -> None:
    """Its prompt is what its template says, unless --template names another."""
    own = "<|system|>Be kind.<|im_end|><|user|>Hello<|im_end|><|assistant|>"
    template = folder.parent / "other.jinja"
    template.write_text(f"{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{own}")
    for words, n_tokens in (
        ([], len("Be kind.Hello") + 5),
        (["--system_prompt", "No."], len("No.Hello") + 5),
        (["--template", str(template)], len("HelloBe kind.Hello") + 5),
    ):
        result = run("--ckpt", str(folder), "--max_new_tokens", "1", *words, ckpt=False)
        assert result.code == 0
        assert f" · ctx {n_tokens + 1}/128 · " in result.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no.jinja: No such file or directory"),
        (b"{% for", "no.jinja is not a Jinja template"),
        (b"\xff", "no.jinja is not UTF-8 at byte 0"),
        (b"silent", "no.jinja leaves out what the user says"),
        (b"x" * (2 << 20), "no.jinja has 2097152 characters"),
    ],
)
def test_a_template_that_cannot_be_used(
    run: Run, tmp_path: Path, content: bytes | None, message: str
) -> None:
    """One line names the file and what is wrong with it."""
    path = tmp_path / "no.jinja"
    if content is not None:
        path.write_bytes(content)
    assert message in refused(run("--template", str(path)))


def test_a_smaller_window_is_kept_to(run: Run) -> None:
    """--max_ctx_tokens bounds prompt and reply; more than the model has is said."""
    small = run("--max_ctx_tokens", "64", "--stop", "@@@@")
    assert "/64 · " in small.err
    large = run("--max_ctx_tokens", "999")
    assert "- --max_ctx_tokens 999: the model sees at most 128 -" in large.err
    assert "/128 · " in large.err


def test_the_opening_is_short_and_honest(make_talk: Any) -> None:
    """Who speaks, at which step, how large; what it is; and where it was better."""
    talk = make_talk(max_ctx_tokens=256)
    introduce(talk.chat)
    assert talk.shown == (
        "test-run step 7\n"
        "A small plain-text model: it continues a dialogue, and makes things up.\n"
        "/help lists the commands, Ctrl-D leaves.\n"
    )


def test_the_opening_shows_a_system_text_of_the_template(
    folder: Path, make_talk: Any, chat_tokenizer: CharTokenizer
) -> None:
    """What the model is told besides what one types; a system text takes its place."""
    template = (folder / "chat_template.jinja").read_text()
    for system in ("", "Be brief."):
        talk = make_talk(speaks=chat_tokenizer, template=template, system=system)
        introduce(talk.chat)
        assert "A small chat model: it answers as its text taught it" in talk.shown
        line = "Its template adds a system text, unless you give one: Be kind.\n"
        assert (line in talk.shown) == (system == "")
    talk.do("/system -")
    assert talk.shown.endswith("no system text; the template adds: Be kind.\n")


def test_the_loop(make_talk: Any) -> None:
    """Ctrl-C on an empty line says how to leave; errors are one line; Ctrl-D and /exit leave."""
    talk = make_talk(" ok\n\n")
    session = Session(talk.chat.screen, lambda: talk.chat.model, lambda _: talk.chat, name="tiny")
    session.converse(Mock(side_effect=[KeyboardInterrupt, "hi", "", "/nothing", EOFError]))
    assert "- Ctrl-D or /exit leaves -\n" in talk.shown
    assert "ok\n" in talk.shown
    assert "! nothing sent: the message is empty\n" in talk.shown
    assert "! no command is called /nothing; " in talk.shown
    session.converse(Mock(side_effect=["/exit", "never read"]))
    assert talk.chat.finished


def test_its_own_flags() -> None:
    """As the documentation spells them."""
    words = ["--max_ctx_tokens", "9", "--no_history", "--system_prompt=Be kind."]
    arguments = load(ChatArguments, words, prog="yocto-chat")
    expected = ConversationArguments(system_prompt="Be kind.", max_ctx_tokens=9, history=False)
    assert expected == arguments.conversation


@pytest.mark.parametrize("words", [["--help"], ["--temprature", "1"], ["--config", "nowhere"]])
def test_help_and_typing_errors_import_nothing_heavy(words: list[str]) -> None:
    """torch, rich and prompt_toolkit come in only after the words have been understood."""
    program = (
        "import sys; from yocto_chat.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'prompt_toolkit', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")


def test_the_example_of_the_readme_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch, checkpoints: Path
) -> None:
    """As it stands there, in a directory with checkpoints: a reply on stdout."""
    monkeypatch.chdir(checkpoints.parent)
    readme = Path(__file__).parent.with_name("README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    echo, _, command = example.strip().partition(" | ")
    name, *words = shlex.split(command)
    assert name == "yocto-chat"
    result = run(*words, stdin=f"{shlex.split(echo)[1]}\n".encode(), ckpt=False)
    assert 1 < len(result.out) <= 61
    assert "seed 7" in result.err

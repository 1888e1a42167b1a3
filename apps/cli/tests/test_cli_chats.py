"""Chats from files to training: which template, which vocabulary, what is learned, what is said."""

import io
import json
import pickle
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_cli import train
from yocto_cli.chats import ChatEncoder, hold_chats, turn_tokens
from yocto_cli.prepare import main
from yocto_cli.screen.ladder import ladder, ladder_of
from yocto_cli.screen.terminal import show_marked
from yocto_cli.train_data import data_directory
from yocto_cli.train_settings import DataFlags
from yocto_data import ChatDataset, DataMeta, Message, load_bin
from yocto_tokenizers import CHATML, PLAIN, TURNS, CharTokenizer, load_tokenizer

TINY = [
    "--n_layer=1", "--n_head=2", "--n_embd=8", "--block_size=32", "--batch_size=2",
    "--device=cpu", "--sample_tokens=8", "--max_iters=2",
]  # fmt: skip
SAID = [
    ("What is it?", "A lamp."),
    ("And this?", "A lamp, too.\nIt shines."),
    ("Why?", "So be it."),
]
DIALOGUES = "".join(f"User: {q}\nAssistant: {a}\n\n" for q, a in SAID) * 20
NOVEL = "The lamp shone on the wall, and nobody asked it why.\n\n" * 40
NO_SYSTEM = (
    "{%- if messages[0].role == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}" + TURNS
)


def messages(*said: tuple[str, str], **more: Any) -> str:
    """A record of chats.jsonl."""
    chat = [{"role": role, "content": text} for pair in said
            for role, text in zip(("user", "assistant"), pair, strict=True)]  # fmt: skip
    return json.dumps({"messages": chat, **more}) + "\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with chats of several kinds, to be in."""
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text("".join(messages(pair) for pair in SAID * 20))
    Path("talk.txt").write_text(DIALOGUES)
    Path("novel.txt").write_text(NOVEL)
    return tmp_path


@pytest.fixture
def prepared(run: Any, home: Path) -> Callable[..., tuple[DataMeta, Any]]:
    """Runs `yocto-prepare chat` into `out`; gives what it made and what it said."""

    def prepare(words: str) -> tuple[DataMeta, Any]:
        result = run(main, ["chat", "--out_dir=out", *words.split()])
        assert result.code == 0, result.err  # which may hold progress
        return DataMeta.load("out"), result

    return prepare


def learned(directory: str | Path, split: str = "train") -> list[str]:
    """What is learned of each document, names of special tokens included."""
    data = Path(directory)
    tokenizer = load_tokenizer(data)
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    ids = load_bin(data / f"{split}.bin").numpy()
    bits = np.unpackbits(np.fromfile(data / f"{split}.mask", np.uint8), bitorder="little")
    starts = [*np.fromfile(data / f"{split}.starts", "<u8").astype(int), len(ids)]
    return [
        "".join(names.get(i) or tokenizer.decode([i]) for i in ids[a:b][bits[a:b].astype(bool)])
        for a, b in pairwise(starts)
    ]


# --- templates and vocabularies ------------------------------------------------------------------


@pytest.mark.parametrize(("words", "template", "end"), [
    ("--text_path chats.jsonl", TURNS, "<|im_end|>"),
    ("--text_path talk.txt", PLAIN, "\n\n"),
    ("--text_path talk.txt --tokenizer bpe --vocab_size 300", TURNS, "<|im_end|>"),
    ("--text_path talk.txt --tokenizer word --vocab_size 99 --template plain", PLAIN, "\n\n"),
    ("--text_path talk.txt chats.jsonl", TURNS, "<|im_end|>"),
    ("--text_path chats.jsonl --template plain --seed 3", PLAIN, "\n\n"),
])  # fmt: skip
def test_what_is_learned_is_what_the_assistant_says(
    words: str, template: str, end: str, prepared: Any, home: Path
) -> None:
    """And the end of its turn; turn tokens are in the vocabulary only where they are used."""
    meta, result = prepared(words)
    assert template == Path("out/chat_template.jinja").read_text()
    space = " " if template == PLAIN else ""
    assert {space + answer + end for _, answer in SAID} == set(learned("out"))
    names = load_tokenizer("out").special_tokens
    assert (template == TURNS) == ("<|im_end|>" in names)
    n_learned, n = (meta.chats.train.trained + meta.chats.val.trained), result.out.splitlines()[1]
    chats = 60 * (1 + ("talk.txt chats" in words))
    assert n.startswith(f"{chats} conversations with {chats} replies; {n_learned:,} of ")


def test_texts_between_chats_are_learned_whole(prepared: Any, home: Path) -> None:
    """Each ends with the end of a text, where the vocabulary has one."""
    _, result = prepared("--text_path novel.txt talk.txt --template turns")
    assert "1 part of texts" in result.out
    documents = learned("out") + learned("out", "val")
    assert NOVEL[1:] + "<|endoftext|>" in documents  # nothing is in front of the first character
    assert 61 == len(documents)


def test_a_conversation_ends_as_its_turns_do(home: Path) -> None:
    """In a plain layout the next speaker's name, or a blank line, is what ends a reply."""
    tokenizer = CharTokenizer.train(DIALOGUES)
    (q1, a1), (q2, a2) = SAID[:2]
    chat = [Message("user", q1), Message("assistant", a1)]
    chat += [Message("user", q2), Message("assistant", a2)]
    ids, mask = ChatEncoder(PLAIN, tokenizer)(chat)
    said = tokenizer.decode([i for i, is_on in zip(ids, mask, strict=True) if is_on])
    assert said == f" {SAID[0][1]}\nUser: {SAID[1][1]}\n\n"
    chat[1] = chat[1]._replace(trained=False)
    ids, mask = ChatEncoder(PLAIN, tokenizer)(chat)
    assert f" {SAID[1][1]}\n\n" == tokenizer.decode(
        [i for i, is_on in zip(ids, mask, strict=True) if is_on]
    )
    again = pickle.loads(pickle.dumps(ChatEncoder(PLAIN, tokenizer)))  # noqa: S301 - our own
    assert (ids, mask) == again(chat)


def test_a_template_in_a_file_brings_its_tokens(prepared: Any, home: Path) -> None:
    """Names as special tokens are spelled; a named tokenizer keeps its own template."""
    Path("mine.jinja").write_text(CHATML)
    prepared("--text_path chats.jsonl --template mine.jinja")
    assert ("<|im_start|>", "<|im_end|>") == tuple(turn_tokens(CHATML))[:2]
    assert {f"{answer}<|im_end|>" for _, answer in SAID} == set(learned("out"))
    prepared("--text_path talk.txt --force --tokenizer_path out")
    assert CHATML == Path("out/chat_template.jinja").read_text()
    assert () == turn_tokens(PLAIN)


def test_workers_change_nothing(prepared: Any, home: Path) -> None:
    """The encoder travels to processes."""
    Path("long.jsonl").write_text(messages(("Who?", "The lamp is it. " * 400)) * 600)
    words = "--text_path long.jsonl --tokenizer word --vocab_size 50 --force"
    files = []
    for workers in (1, 2):
        prepared(f"{words} --workers {workers}")
        files.append([path.read_bytes() for path in sorted(Path("out").iterdir())])
    assert files[0] == files[1]


def test_whatsapp(prepared: Any, home: Path) -> None:
    """Who is the assistant is said by --me; without it the names are."""
    day = "[{}.03.24, 21:15] Ann: Are you in?\n[{}.03.24, 21:16] Bo: I am.\n"
    Path("export.txt").write_text("".join(day.format(n, n) for n in range(1, 29)))
    prepared("--text_path export.txt --me Bo --template turns")
    assert {"I am.<|im_end|>"} == set(learned("out"))


@pytest.mark.parametrize(("words", "what"), [
    ("--text_path export.txt", "pass --me=NAME for who is the assistant, of Ann, Bo"),
    ("--text_path export.txt --me Cy", "holds nothing by 'Cy'"),
    ("--text_path asks.jsonl", "no reply to learn from, and no text"),
    ("--text_path bad.jsonl", "bad.jsonl, line 3: no known format"),
    ("--text_path bad.jsonl", "and max_bad is 0.01"),
    ("--text_path chats.jsonl --max_bad 2", "max_bad must be from 0 to 1"),
    ("--text_path sys.jsonl --template nosys.jinja", "no system"),
    ("--text_path chats.jsonl --template lost.jinja", "leaves out what the assistant says"),
    ("--text_path chats.jsonl --template torn.jinja", "is not a Jinja template"),
    ("--text_path chats.jsonl --template none.jinja", "cannot read --template none.jinja"),
    ("--text_path chats.jsonl --vocab_size 99", "add --tokenizer word or bpe"),
    ("--text_path chats.jsonl --show=-1", "--show must be 0 or more"),
    ("--text_path chats.jsonl --vocab_path plain --template turns", "use --template plain"),
    ("--text_path chats.jsonl --vocab_path plain --tokenizer bpe", "kind char; use yocto-prepare"),
    ("--text_path one.jsonl", "one conversation, or a text without any, cannot be"),
])  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(
    words: str, what: str, refused: Any, home: Path
) -> None:
    Path("export.txt").write_text("[01.03.24, 21:15] Ann: In?\n[01.03.24, 21:16] Bo: Yes\n" * 9)
    Path("asks.jsonl").write_text('{"messages": [{"role": "user", "content": "Hm?"}]}\n' * 9)
    Path("bad.jsonl").write_text(messages(SAID[0]) * 2 + '{"x": 1}\n' + messages(SAID[1]) * 50)
    Path("sys.jsonl").write_text(
        '{"system": "Be brief.", "prompt": "Hm?", "completion": "Well."}\n' * 9
    )
    Path("one.jsonl").write_text(messages(SAID[0]))
    for name, source in (
        ("nosys", NO_SYSTEM), ("torn", "{% for"),
        ("lost", "{% for m in messages if m.role == 'user' %}{{ m.content }}\n{% endfor %}"),
    ):  # fmt: skip
        Path(f"{name}.jinja").write_text(source)
    Path("plain").mkdir()
    CharTokenizer.train(DIALOGUES).save("plain")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert what in refused(main, ["chat", "--out_dir=out", *words.split()])
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_what_was_left_out_is_said(prepared: Any, home: Path) -> None:
    """Records by file, line and reason; conversations without a reply."""
    asks = '{"messages": [{"role": "user", "content": "Hm?"}]}\n'
    with Path("chats.jsonl").open("a") as file:
        file.write(asks * 2 + '{"x": 1}\n')
    _, result = prepared("--text_path chats.jsonl --max_bad 0.05")
    assert "note: 2 conversations without a reply to learn from left out\n" in result.out
    assert "note: 1 record dropped, the first in chats.jsonl, line 63: no known" in result.out


# --- --show --------------------------------------------------------------------------------------


def test_learned_tokens_are_marked(prepared: Any, home: Path) -> None:
    """Each line with a line of marks under it, and a number behind each token on request."""
    Path("chats.jsonl").write_text(messages(("Hi\x1b[2J", "A lamp.\n\u706f!")) * 20)
    _, result = prepared("--text_path chats.jsonl --show")
    assert result.out.startswith(
        "<|user|>Hi\u241b[2J<|im_end|><|assistant|>A lamp.\u23ce\n" + " " * 37 + "~" * 8 + "\n"
        "\u706f!<|im_end|>\n" + "~" * 13 + "\n\n"
    )
    _, result = prepared("--text_path chats.jsonl --force --show 2 --show_ids")
    assert 2 == result.out.count("<|assistant|>")
    stoi = load_tokenizer("out").stoi  # type: ignore[attr-defined]
    assert f".[{stoi['.']}][{stoi[chr(10)]}]\u23ce\n" in result.out


@pytest.mark.property
@given(st.lists(st.tuples(st.text(max_size=5), st.integers(0, 9), st.booleans()), max_size=6))
@example([("\n\n", 1, True), ("\x9b\u202e", 2, False)])
def test_marks_stand_under_what_is_marked(tokens: list[tuple[str, int, bool]]) -> None:
    """Nothing acts on a terminal; without the marks the text is there, line by line."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        show_marked(tokens, with_ids=False)
    text = out.buffer.getvalue().decode()
    assert all(character.isprintable() or character == "\n" or character >= "\x80"
               for character in text)  # fmt: skip
    n_ends = sum(text.count("\n") for text, _, _ in tokens)
    assert n_ends <= text.count("\u23ce")


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "data", "template"), [
    ("--text_path talk.txt", "talk-bpe", TURNS),
    ("--mode char --text_path talk.txt", "talk-char", PLAIN),
    ("--tokenizer bpe --vocab_size 300 --text_path chats.jsonl novel.txt", "chats-bpe-300", TURNS),
    ("--text_path novel.txt --tokenizer word", "novel-word", None),
    ("--text_path novel.txt --mode token --vocab_size 300", "novel-bpe-300", None),
])  # fmt: skip
def test_files_are_prepared_and_the_template_is_saved(
    words: str, data: str, template: str | None, run: Any, home: Path
) -> None:
    """Once: a second run uses the same data; what is learned is said, also in the report."""
    for _ in range(2):
        result = run(train.main, [*TINY, *words.split()])
        assert result.code == 0, result.err
    assert ["data"] == [path.name for path in home.glob("data*")]
    assert [data] == [path.name for path in Path("data").iterdir()]
    step = Path("checkpoints") / f"{data}-002" / "step-00000002"
    saved = step / "chat_template.jinja"
    assert template == (saved.read_text() if saved.exists() else None)
    meta = DataMeta.load(f"data/{data}")
    if meta.chats is not None:
        n = meta.chats.train.trained
        share = f"{n:,} of these tokens are learned ({n / meta.train.tokens:.0%})"
        assert share in result.out
        assert share in (step.parent / "report.html").read_text()
    if template == TURNS:
        ends = json.loads((step / "generation_config.json").read_text())["eos_token_id"]
        assert load_tokenizer(step).special_tokens["<|im_end|>"] in ends
    resumed = run(train.main, ["--resume", "--max_iters=3"])
    assert resumed.code == 0, resumed.err


def test_a_run_on_prepared_dialogues_is_plain(run: Any, home: Path) -> None:
    """Also where they were prepared as a text: then nothing else is taken for its template."""
    assert run(main, ["bpe", "--text_path=talk.txt", "--out_dir=d", "--vocab_size=300"]).code == 0
    assert {"<s>", "</s>", "<unk>"} == set(load_tokenizer("d").special_tokens)
    assert run(train.main, [*TINY, "--data_dir=d"]).code == 0
    saved = Path("checkpoints/d/step-00000002/chat_template.jinja")
    assert PLAIN == saved.read_text()


@pytest.mark.parametrize(("flags", "what"), [
    ({"mode": "char", "tokenizer": "bpe"}, "--mode char, but the tokenizer is bpe"),
    ({"mode": "token", "tokenizer": "char"}, "--mode token, but --tokenizer char"),
    ({"vocab_size": 99, "tokenizer": "char"}, "add --tokenizer word or bpe"),
    ({"text_path": (), "data_dir": "d", "tokenizer": "bpe"}, "--tokenizer is for a text"),
    ({"tokenizer_path": "plain", "vocab_size": 99}, "leave --tokenizer and --vocab_size out"),
    ({"text_path": ("export.txt",)}, "pass --me=NAME"),
    ({"text_path": ("nowhere.jsonl",)}, "cannot read nowhere.jsonl"),
])  # fmt: skip
def test_flags_that_contradict_each_other_are_refused(
    flags: dict[str, Any], what: str, home: Path
) -> None:
    Path("export.txt").write_text("[01.03.24, 21:15] Ann: In?\n[01.03.24, 21:16] Bo: Yes\n" * 9)
    Path("plain").mkdir()
    CharTokenizer.train(DIALOGUES).save("plain")
    with pytest.raises(Exception, match=what) as refused:
        data_directory(DataFlags(**{"text_path": ("talk.txt",), **flags}))
    assert "UsageError" == type(refused.value).__name__
    assert not Path("data").exists()


def test_other_settings_get_other_data(home: Path) -> None:
    """What was prepared otherwise is neither used nor replaced."""

    def made(**flags: Any) -> str:
        return str(data_directory(DataFlags(**{"text_path": ("talk.txt",), **flags})))

    CharTokenizer.train(DIALOGUES + "?!").save(Path("mine.json"))
    seen: Sequence[str] = [
        made(), made(val_ratio=0.4), made(vocab_path="mine.json"), made(tokenizer="word"),
        made(tokenizer="bpe", vocab_size=300), made(tokenizer="bpe", vocab_size=310),
    ]  # fmt: skip
    assert len(set(seen)) == len(seen)
    assert "data/talk-bpe" == made() == seen[0]
    assert seen[2] == made(vocab_path="mine.json")
    assert seen[4] == made(tokenizer="bpe", vocab_size=300)


def test_the_ladder_counts_what_is_learned(prepared: Any, home: Path) -> None:
    """As the loss does."""
    prepared("--text_path chats.jsonl --val_ratio 0.3")
    data = [ChatDataset(f"out/{name}.bin", 32) for name in ("train", "val")]
    ids = [np.concatenate(list(each.trained_ids())) for each in data]
    assert ladder_of(*data, vocab_size=60, characters=True) == ladder(
        *ids, vocab_size=60, characters=True
    )


def test_chats_behind_many_texts_are_found(home: Path) -> None:
    """The beginning of each file is looked at, and not of the first alone."""
    folder = home / "mixed"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "prose"}\n' * 500)
    assert not hold_chats([str(folder)])
    (folder / "b.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    assert hold_chats([str(folder)])


@pytest.mark.parametrize("words", ["", "--tokenizer bpe --vocab_size 320 --template plain",
                                   "--tokenizer word", "--template turns"])  # fmt: skip
def test_a_long_conversation_is_cut_in_front_of_a_speaker(
    home: Path, prepared: Callable[..., Any], words: str
) -> None:
    """Longer than a window, it is cut where the user speaks: every piece begins as a whole one."""
    turns = [(f"{question} {n}", answer) for n in range(4) for question, answer in SAID]
    talk = "".join(f"User: {q}\nAssistant: {a}\n" for q, a in turns)
    Path("long.txt").write_text(f"{talk}\n" * 8)
    prepared(f"--text_path long.txt {words}")
    dataset, tokenizer = ChatDataset("out/train.bin", 96), load_tokenizer("out")
    assert dataset.n_cut > 0
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    for number in range(len(dataset)):
        ids = dataset[number][0].tolist()
        begin = names.get(ids[0]) or tokenizer.decode(ids[:8])
        assert begin.startswith(("User: ", "<|user|>"))

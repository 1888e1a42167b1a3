"""The texts in data/ keep what their README promises."""

import collections
import lzma
import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module", params=["philosophy.txt", "conversations.txt", "essays.txt"])
def corpus(root: Path, request: pytest.FixtureRequest) -> str:
    return read(root, request.param)


def read(root: Path, name: str) -> str:
    content = (root / "data" / name).read_bytes()
    assert b"\r" not in content
    return content.decode("utf-8")


def blocks(corpus: str) -> list[list[str]]:
    """Paragraphs and conversations, each as its lines."""
    return [block.split("\n") for block in corpus.strip("\n").split("\n\n")]


def wordings(block: list[str]) -> list[str]:
    """What else the user may say in a conversation, at any turn."""
    return [line.removeprefix("Or: ") for line in block if line.startswith("Or: ")]


def bare(text: str) -> str:
    """Its letters and digits, which tell wordings apart."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def test_size_and_characters(corpus: str) -> None:
    """At least 250 KB from at most 90 characters, with straight quotes and no tabs."""
    assert len(corpus.encode()) >= 250_000
    assert len(set(corpus)) <= 90
    assert corpus.isascii()
    assert "\t" not in corpus
    assert corpus.endswith("\n")
    assert not corpus.endswith("\n\n")
    assert not re.search(r"[ ]+$|  |\n\n\n", corpus, re.MULTILINE)


@pytest.mark.parametrize("name", ["philosophy.txt", "conversations.txt"])
def test_turns_have_the_format_of_the_chat(root: Path, name: str) -> None:
    """User and Assistant alternate, one turn a line; other wordings stand below the user's."""
    for block in blocks(read(root, name)):
        speakers = "".join(line[0] for line in block)
        assert re.fullmatch("(UO*A)+", speakers), block[0]
        assert all(re.fullmatch("(User|Or|Assistant): .+", line) for line in block), block[0]


def test_essays_have_one_paragraph_a_line(root: Path) -> None:
    """Nobody speaks in them."""
    for block in blocks(read(root, "essays.txt")):
        assert len(block) == 1, block[0]
        assert not re.match(r"(User|Assistant|Or):", block[0])


def test_no_question_is_asked_twice(root: Path) -> None:
    """Other wordings differ from each other, and from what conversations begin with."""
    conversations = blocks(read(root, "philosophy.txt"))
    firsts = {bare(block[0].removeprefix("User: ")) for block in conversations}
    others = [bare(wording) for block in conversations for wording in wordings(block)]
    assert len(firsts) == len(conversations)
    assert len(set(others)) == len(others) >= 10 * len(conversations)
    assert firsts.isdisjoint(others)


def test_nothing_is_said_twice(corpus: str) -> None:
    """No paragraph and no sentence longer than 60 characters occurs twice."""
    lines = [re.sub(r"^(User|Or|Assistant): ", "", line) for b in blocks(corpus) for line in b]
    sentences = [s for line in lines for s in re.split(r"(?<=[.?!])\s+", line)]
    for pieces in (lines, sentences):
        counts = collections.Counter(piece for piece in pieces if len(piece) > 60)
        assert [] == [piece for piece, n in counts.items() if n > 1]


def test_few_phrases_recur(corpus: str) -> None:
    """Fewer than 1 % of 8-word sequences occur more than 5 times."""
    words = corpus.split()
    counts = collections.Counter(zip(*(words[i:] for i in range(8)), strict=False))
    often = sum(n for n in counts.values() if n > 5)
    assert often / sum(counts.values()) < 0.01


def test_it_is_varied(corpus: str) -> None:
    """It does not compress below 24 % of its size, as text with repetitions would."""
    packed = len(lzma.compress(corpus.encode(), preset=9))
    assert packed / len(corpus.encode()) >= 0.24


def test_readme_states_the_true_figures(root: Path) -> None:
    """Every figure of data/README.md is what counting gives."""
    readme = (root / "data" / "README.md").read_text()
    figures: dict[str, list[int | None]] = collections.defaultdict(list)
    for name in ("philosophy.txt", "conversations.txt", "essays.txt"):
        text = read(root, name)
        parts = blocks(text)
        is_prose = name == "essays.txt"
        others = sum(len(wordings(part)) for part in parts)
        figures["conversations"].append(None if is_prose else len(parts))
        figures["turns"].append(None if is_prose else sum(map(len, parts)) - others)
        figures["other wordings of what the user says"].append(None if is_prose else others)
        figures["paragraphs"].append(len(parts) if is_prose else None)
        figures["bytes"].append(len(text.encode()))
        figures["distinct characters"].append(len(set(text)))
    for name, numbers in figures.items():
        cells = ["" if number is None else f"{number:,}" for number in numbers]
        assert f"| {name} | {' | '.join(cells)} |" in readme

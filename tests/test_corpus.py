"""data/philosophy.txt keeps what its README promises."""

import collections
import lzma
import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def corpus(root: Path) -> str:
    content = (root / "data" / "philosophy.txt").read_bytes()
    assert b"\r" not in content
    return content.decode("utf-8")


def blocks(corpus: str) -> list[list[str]]:
    """Paragraphs and conversations, each as its lines."""
    return [block.split("\n") for block in corpus.strip("\n").split("\n\n")]


def is_dialogue(block: list[str]) -> bool:
    return block[0].startswith("User:")


def test_size_and_characters(corpus: str) -> None:
    """At least 600 KB from at most 90 characters, with straight quotes and no tabs."""
    assert len(corpus.encode()) >= 600_000
    assert len(set(corpus)) <= 90
    assert corpus.isascii()
    assert "\t" not in corpus
    assert corpus.endswith("\n")
    assert not corpus.endswith("\n\n")
    assert not re.search(r"[ ]+$|  |\n\n\n", corpus, re.MULTILINE)


def test_turns_have_the_format_of_the_chat(corpus: str) -> None:
    """A conversation alternates User and Assistant, one turn a line, and the Assistant ends it."""
    for block in blocks(corpus):
        if is_dialogue(block):
            speakers = [line.split(": ", 1)[0] for line in block]
            assert speakers == ["User", "Assistant"] * (len(block) // 2), block[0]
            assert all(len(line.split(": ", 1)[1]) > 1 for line in block), block[0]
        else:
            assert len(block) == 1, block[0]
            assert not re.match(r"(User|Assistant):", block[0])


def test_about_three_fifths_are_dialogue(corpus: str) -> None:
    """Between 50 and 70 % of the characters belong to conversations."""
    dialogue = sum(len("\n".join(b)) for b in blocks(corpus) if is_dialogue(b))
    assert 0.5 <= dialogue / len(corpus) <= 0.7


def test_nothing_is_said_twice(corpus: str) -> None:
    """No paragraph and no sentence longer than 60 characters occurs twice."""
    lines = [re.sub(r"^(User|Assistant): ", "", line) for b in blocks(corpus) for line in b]
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


def test_readme_states_the_true_figures(corpus: str, root: Path) -> None:
    """Every figure of data/README.md is what counting gives."""
    readme = (root / "data" / "README.md").read_text()
    conversations = [b for b in blocks(corpus) if is_dialogue(b)]
    figures = {
        "bytes": len(corpus.encode()),
        "characters": len(corpus),
        "distinct characters": len(set(corpus)),
        "conversations": len(conversations),
        "turns": sum(map(len, conversations)),
    }
    for name, figure in figures.items():
        assert f"| {name} | {figure:,} |" in readme

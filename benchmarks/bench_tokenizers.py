"""Encoding and decoding, ours against a plain way of doing the same, in turns in one process.

uv run nox -s bench -- tokenizers
TEXT names another text to learn from and to shuffle; SCALE=0.01 shrinks the sizes, to try it out.
"""

import operator
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

# One thread on both sides: ours takes one, and Hugging Face reads these when it first works.
os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import sentencepiece
import tokenizers
from yocto_tokenizers import CharTokenizer, SentencePieceTokenizer

T = TypeVar("T")
SCALE = float(os.environ.get("SCALE", "1"))
ROUNDS = 5
VOCAB_SIZE = 8000  # what yocto-prepare takes by default
CHAR_CHARACTERS, BPE_CHARACTERS = int(1e6 * SCALE), int(4e6 * SCALE)
DOCUMENT_CHARACTERS = 4000


def in_turns(
    ours: Callable[[T], object],
    theirs: Callable[[T], object],
    inputs: Iterable[T],
    *,
    same: Callable[[Any, Any], bool] = operator.eq,
) -> tuple[float, float]:
    """Median seconds of each; in turns, so that both see the same machine; same results.

    The first input is not counted: it fills tables. None comes twice: a cache would answer.
    """
    seconds: list[tuple[float, float]] = []
    for each in inputs:
        begun = time.perf_counter()
        mine = ours(each)
        between = time.perf_counter()
        peers = theirs(each)
        seconds.append((between - begun, time.perf_counter() - between))
        assert same(mine, peers)
    of_ours, of_theirs = zip(*seconds[1:], strict=True)
    return statistics.median(of_ours), statistics.median(of_theirs)


def report(what: str, ours: str, theirs: str, ratio: float, target: str, *, met: bool) -> None:
    """One line of the table."""
    verdict = "met" if met else "NOT met"
    print(f"{what}: {ours}, {theirs}, ratio {ratio:.2f}, target {target}: {verdict}", flush=True)


def report_speed(
    what: str, times: tuple[float, float], peer: str, at_least: float, *, unit: float = 1e-3
) -> None:
    """One line of the table, for the seconds of `in_turns`; `unit` is a second, ms or us."""
    name = {1.0: "s", 1e-3: "ms", 1e-6: "us"}[unit]
    ours, theirs = (f"{seconds / unit:,.2f} {name}" for seconds in times)
    ratio = times[1] / times[0]
    target = f"{at_least:g} or more" if at_least > 1 else "more than 1"
    met = ratio >= at_least if at_least > 1 else ratio > 1
    report(what, f"yocto {ours}", f"{peer} {theirs}", ratio, target, met=met)


def shuffled_copies(text: str) -> Iterator[str]:
    """The text over and over, its words in another order each time, the same in every run.

    So no line comes twice: some peers keep the ids of lines that they have seen.
    """
    words = np.array(re.findall(r"\S+\s*", text), dtype=object)
    generator = np.random.default_rng(1337)
    while True:
        generator.shuffle(words)
        yield "".join(words.tolist())


def long_texts(copies: Iterator[str], length: int) -> list[str]:
    """A new text of that many characters for each round, and one to begin with."""
    texts = []
    for _ in range(ROUNDS + 1):
        text = ""
        while len(text) < length:
            text += next(copies)
        texts.append(text[:length])
    return texts


def characters(texts: list[str]) -> None:
    tokenizer = CharTokenizer.train(texts)
    stoi, itos = dict(tokenizer.stoi), dict(enumerate(tokenizer.itos))

    def look_up(text: str) -> np.ndarray:
        return np.array([stoi[character] for character in text], dtype=np.uint16)

    def join(pair: tuple[np.ndarray, list[int]]) -> str:
        return "".join([itos[i] for i in pair[1]])

    # The peer gets a list, which suits it: from an array it would take far longer.
    pairs = [(ids := tokenizer.encode_to_numpy(text), ids.tolist()) for text in texts]
    size = f"{len(texts[0]) / 1e6:g} MB ASCII"
    times = in_turns(tokenizer.encode_to_numpy, look_up, texts, same=np.array_equal)
    report_speed(f"char encode, {size}", times, "dict and np.array", 30)
    times = in_turns(lambda pair: tokenizer.decode(pair[0]), join, pairs)
    report_speed(f"char decode, {size}", times, "join of a list", 10)


def one_call(tokenizer: SentencePieceTokenizer, texts: list[str]) -> None:
    plain = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())
    times = in_turns(tokenizer.encode, plain.encode, texts)
    what = f"bpe encode, a text of {len(texts[0]):,} characters, {tokenizer.vocab_size} ids"
    report_speed(what, times, "one sentencepiece call", 1.5)


def hugging_face(tokenizer: SentencePieceTokenizer, copies: Iterator[str]) -> None:
    exported = tokenizers.Tokenizer.from_str(tokenizer.folder_files()["tokenizer.json"].decode())

    def theirs(texts: list[str]) -> list[list[int]]:
        # The call that leaves out offsets, which is its fastest.
        batch = exported.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    for what, length in (("a text", BPE_CHARACTERS), ("documents", DOCUMENT_CHARACTERS)):
        inputs = [
            [text[start : start + length] for start in range(0, len(text), length)]
            for text in long_texts(copies, BPE_CHARACTERS)
        ]
        times = in_turns(tokenizer.encode_batch, theirs, inputs)
        report_speed(
            f"bpe encode, {what} of {length:,} characters, one thread, same ids",
            times, f"Hugging Face {tokenizers.__version__}", 1,
        )  # fmt: skip


def main() -> None:
    from common import machine, text_path

    machine()
    # U+2581 is a space to both peers, so that ids would differ.
    text = text_path().read_text(encoding="utf-8").replace("\u2581", " ")
    copies = shuffled_copies(text)
    ascii_copies = (copy.encode("ascii", "ignore").decode("ascii") for copy in copies)
    characters(long_texts(ascii_copies, CHAR_CHARACTERS))
    tokenizer = SentencePieceTokenizer.train(text, vocab_size=VOCAB_SIZE, shrink=True)
    one_call(tokenizer, long_texts(copies, BPE_CHARACTERS))
    hugging_face(tokenizer, copies)


if __name__ == "__main__":
    main()

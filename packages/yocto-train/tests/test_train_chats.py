"""Training on chats: only what is learned counts, once, whatever parts the batch is cut into."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from yocto_data import ChatDataset, DataError, Message, prepare_chats
from yocto_model import GPT
from yocto_tokenizers import CharTokenizer
from yocto_train import Evaluated, Run, Saved, StepDone, TrainConfig, Trainer, evaluate

TEXTS = [("Hi", "Ho."), ("Who?", "Me, and you."), ("", "Yes"), ("Why is it so late?", "It is not.")]


def encode(chat: Sequence[Message]) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    mask: list[bool] = []
    for message in chat:
        is_reply = message.role == "assistant"
        part = TOKENIZER.encode(f"{'A' if is_reply else 'U'}:{message.content}\n")
        ids += part
        mask += [is_reply and i >= 2 for i in range(len(part))]
    return ids, mask


TOKENIZER = CharTokenizer.train("UA:\n" + "".join(q + a for q, a in TEXTS))


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory of forty chats."""
    root = tmp_path_factory.mktemp("chats")
    records = [{"prompt": q, "completion": a} for q, a in TEXTS] * 10
    (root / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare_chats(
        root / "chats.jsonl", root / "data", tokenizer=TOKENIZER, encode=encode, template="T"
    )
    return root / "data"


@pytest.fixture
def trainer_of(chats: Path, make_model: Callable[..., GPT]) -> Callable[..., Trainer]:
    """A trainer on them, with windows of 24 tokens."""

    def make(run: Run | None = None, **settings: Any) -> Trainer:
        model = make_model(vocab_size=TOKENIZER.vocab_size, block_size=24, dropout=0.0)
        splits = [ChatDataset(chats / f"{name}.bin", 24) for name in ("train", "val")]
        defaults = {"max_iters": 8, "batch_size": 4, "eval_interval": 4, "log_interval": 1}
        config = TrainConfig(**{**defaults, "warmup_iters": 2, "seed": 3, **settings})
        return Trainer(
            model, splits[0], splits[1], config, run=run, tokenizer=TOKENIZER, template="T",
            device="cpu",
        )  # fmt: skip

    return make


def test_the_loss_of_a_step_is_the_mean_over_what_is_learned(
    trainer_of: Callable[..., Trainer],
) -> None:
    trainer = trainer_of()
    x, y = trainer.sampler.batch(0)
    with torch.no_grad():
        logits = trainer.model(x).double().numpy()
    chosen = np.exp(logits - logits.max(-1, keepdims=True))
    chosen = np.log(chosen / chosen.sum(-1, keepdims=True))
    losses = [-chosen[b, t, y[b, t]] for b, t in np.ndindex(*y.shape) if y[b, t] >= 0]
    assert 0 < len(losses) < y.numel()
    first = next(event for event in trainer.run() if isinstance(event, StepDone))
    assert first.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_parts_of_a_batch_give_the_same_training(trainer_of: Callable[..., Trainer]) -> None:
    whole, parts = trainer_of(), trainer_of(accumulate=4)
    for trainer in (whole, parts):
        list(trainer.run())
    for ours, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_evaluation_counts_every_learned_token_once(
    trainer_of: Callable[..., Trainer], chats: Path
) -> None:
    measured = [event for event in trainer_of().run() if isinstance(event, Evaluated)]
    dataset = ChatDataset(chats / "val.bin", 24)
    assert measured[-1].whole
    assert measured[-1].tokens == dataset.chats.trained
    result = evaluate(trainer_of().model, dataset, batch_size=1, n_batches=1)
    assert result is not None
    assert not result.whole
    lengths = [len(ids) for ids in dataset.trained_ids()]
    assert sum(lengths) == dataset.chats.trained
    assert measured[-1].bits_per_byte == pytest.approx(measured[-1].loss / np.log(2))


def test_a_stopped_training_goes_on_to_the_bit(
    trainer_of: Callable[..., Trainer], run: Run, tmp_path: Path
) -> None:
    whole = trainer_of()
    list(whole.run())
    first = trainer_of(run)
    for event in first.run():
        if isinstance(event, StepDone) and event.step == 5:
            first.request_stop()
    second = trainer_of(run)
    second.restore(run.latest())
    assert second.progress.step == 5
    list(second.run())
    for ours, theirs in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    step = run.pointed("latest")
    assert step is not None
    assert (step / "chat_template.jinja").read_text() == "T"


@pytest.mark.parametrize("name", ["train.mask", "val.starts", "chat_template.jinja"])
def test_what_is_learned_is_written_over_while_training(
    trainer_of: Callable[..., Trainer], run: Run, chats: Path, name: str
) -> None:
    """Other content of the same size, in the same file: it is noticed instead of the next save."""
    content = (chats / name).read_bytes()
    events = trainer_of(run).run()
    try:
        assert next(event for event in events if isinstance(event, Saved)).step == 4
        (chats / name).write_bytes(bytes(byte ^ 1 for byte in content))
        with pytest.raises(DataError, match=f"{name} was damaged or replaced"):
            list(events)
    finally:
        (chats / name).write_bytes(content)
    assert run.latest().step == 4


def test_a_sample_answers_a_question_of_the_data(trainer_of: Callable[..., Trainer]) -> None:
    trainer = trainer_of(sample_interval=8, sample_tokens=4)
    prompts = [event.prompt for event in trainer.run() if hasattr(event, "prompt")]
    assert prompts
    assert any(prompts[0] == f"U:{question}\nA:" for question, _ in TEXTS)

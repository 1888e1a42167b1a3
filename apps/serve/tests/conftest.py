"""Shared by the tests of this package: a run of two steps, and a server over it in this process."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from yocto_cli.model_arguments import ModelArguments
from yocto_model import GPT, GPTConfig, SamplingOptions, TextGenerator
from yocto_serve.engine import Engine
from yocto_serve.models import Library, Loaded
from yocto_serve.server import Server
from yocto_tokenizers import CharTokenizer
from yocto_train import Run, save_checkpoint

ALPHABET = "\n" + "".join(map(chr, range(0x20, 0x7F)))
TOKENIZER = CharTokenizer(ALPHABET)
WINDOW = 128


def save_step(run: Path, step: int, *, seed: int | None = None) -> None:
    """A checkpoint of an untrained model, to which `latest` then points."""
    config = GPTConfig(
        vocab_size=TOKENIZER.vocab_size, block_size=WINDOW, n_layer=1, n_head=2, n_embd=16
    )
    model = GPT(config, generator=torch.Generator().manual_seed(step if seed is None else seed))
    run.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        run, model, {"step": step}, tokenizer=TOKENIZER, data={}, val_loss=4.5, environment={}
    )
    Run(run).point("latest", Run(run).step_directory(step))


@pytest.fixture
def save() -> Callable[..., None]:
    """`save_step`."""
    return save_step


@pytest.fixture(scope="session")
def run_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, `tiny`, with the steps 3 and 5; `best` is 3."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    for step in (3, 5):
        save_step(run, step)
    Run(run).point("best", Run(run).step_directory(3))
    return run


@dataclass
class Served:
    """A server, and a client of it."""

    server: Server
    client: TestClient
    log: list[str] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return self.server.engine

    @property
    def model(self) -> Loaded:
        return self.server.library.served

    def chat(self, *messages: str, **fields: Any) -> Any:
        """The response to a chat: user and assistant by turns."""
        roles = ("user", "assistant")
        said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
        return self.post("chat/completions", {"messages": said, **fields})

    def complete(self, prompt: Any = "The", **fields: Any) -> Any:
        return self.post("completions", {"prompt": prompt, **fields})

    def post(self, path: str, body: object) -> Any:
        return self.client.post(f"/v1/{path}", content=json.dumps(body))

    def refusal(self, response: Any, status: int = 400) -> dict[str, Any]:
        """What an error says, once its form is proved."""
        assert (response.status_code, set(response.json())) == (status, {"error"}), response.text
        error: dict[str, Any] = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "Traceback" not in error["message"]
        return error

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a stream; the last event is [DONE]."""
        response = self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        *parts, end = response.text.split("\n\n")
        assert end == ""
        assert parts.pop() == "data: [DONE]"
        return [json.loads(part.removeprefix("data: ")) for part in parts]

    def alone(self, prompt: str, n: int, **options: Any) -> str:
        """What the model says to a prompt when nobody else is served."""
        generator = TextGenerator(self.model.model, self.model.tokenizer)
        seed, stop = options.pop("seed", None), options.pop("stop", ())
        chosen = SamplingOptions(**options)
        return generator.generate(prompt, n, options=chosen, seed=seed, stop=stop)


@pytest.fixture(scope="session")
def serve(run_of_two: Path) -> Iterator[Callable[..., Served]]:
    """Makes servers; keywords go to `Server`."""
    engines = []

    def make(ckpt: Path | None = None, **options: Any) -> Served:
        engines.append(Engine())
        log: list[str] = []
        library = Library(ModelArguments(ckpt=str(ckpt or run_of_two), device="cpu"))
        server = Server(library, engines[-1], log=log.append, **options)
        return Served(server, TestClient(server.app, base_url="http://localhost:8000"), log)

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def served(serve: Callable[..., Served]) -> Iterator[Served]:
    """A server with the default settings; its client keeps one event loop."""
    found = serve()
    with found.client:
        yield found

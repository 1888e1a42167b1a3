"""The command: its flags, its socket, and its end."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from yocto_serve.app import is_loopback, main
from yocto_serve.session import Uvicorn


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "65536"], "--port must be from 0 to 65535"),
        (["--threads", "-1"], "--threads must be at least 0"),
        (["--host", "10.0.0.1"], "set --api_key, or say --no_auth"),
        (["--host", "example.org"], "set --api_key, or say --no_auth"),
        (["--api_key", ""], "--api_key must be a text"),
        (["--allow_origin", "https://example.org/page"], "must be like https://example.org"),
        (["--template", "no.jinja"], "cannot read --template no.jinja"),
        (["--ckpt", "no/such"], "does not exist"),
        (["--prot", "1"], "did you mean --port?"),
    ],
)
def test_what_cannot_be_meant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], said: str,
) -> None:  # fmt: skip
    """Exit code 2 and one line."""
    monkeypatch.chdir(tmp_path)
    words = words if "--port" in words else ["--port", "0", *words]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], run_of_two: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--ckpt", str(run_of_two), "--port", str(port)]) == 2
    assert f"--port {port + 1}" in capsys.readouterr().err


def test_addresses_of_this_computer() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "localhost"]))
    assert not any(map(is_loopback, ["10.0.0.1", "::", "192.168.1.2", "example.org", ""]))


def test_help_is_quick() -> None:
    """It imports neither torch nor the server."""
    code = (
        "import sys; from yocto_serve import app; app.main(['--help']); "
        "sys.exit(bool({'torch', 'starlette', 'uvicorn', 'msgspec'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--allow_origin" in done.stdout


def test_the_page_does_not_wait_for_the_model() -> None:
    """All else does, and so does whoever asks under a foreign name; the end comes to them, too."""

    async def work() -> None:
        server = Uvicorn(("127.0.0.1",))
        transport = httpx.ASGITransport(app=server.answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1") as client:
            assert "<html" in (await client.get("/")).text
            foreign = client.get("/", headers={"host": "elsewhere:1"})
            waiting = [asyncio.create_task(each) for each in (client.get("/health"), foreign)]
            done, _ = await asyncio.wait(waiting, timeout=0.05)
            assert not done
            server.app.set_result(PlainTextResponse("all of it"))
            found = [*await asyncio.gather(*waiting), await client.get("/")]
            assert [each.text for each in found] == ["all of it"] * 3

    asyncio.run(work())


def test_a_model_that_cannot_be_opened_ends_the_server(
    run_of_two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found when the socket is open already: still one line, and exit code 2."""
    (tmp_path / "config.json").write_bytes((run_of_two / "latest" / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert main(["--ckpt", str(tmp_path), "--port", "0"]) == 2
    assert "model.safetensors" in capsys.readouterr().err


# --- a server on a real socket -------------------------------------------------------------------


@contextmanager
def running(run: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and its address once it answers."""
    code = "from yocto_serve import main; main()"
    command = [sys.executable, "-c", code, "--ckpt", str(run), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        try:
            assert process.stdout
            line = process.stdout.readline()
            match = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert match, (line, process.stderr and process.stderr.read())
            yield process, match[0]
        finally:
            process.kill()


def body(**fields: Any) -> dict[str, Any]:
    return {"prompt": "The", "max_tokens": 4000, "seed": 1, **fields}


@pytest.mark.integration
def test_clients_that_go_away_and_the_end(run_of_two: Path) -> None:
    """A client that hangs up ends its text, streamed or not; Ctrl-C cuts what runs, and is told."""
    with running(run_of_two) as (process, url), httpx.Client(base_url=url, timeout=60) as client:
        assert process.stderr
        assert "tiny step 5" in process.stderr.readline()
        with client.stream("POST", "/v1/completions", json=body(stream=True)) as response:
            assert next(response.iter_lines()).startswith("data: ")
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=body(), timeout=httpx.Timeout(60, read=0.2))
        for _ in range(2):
            line = process.stderr.readline()
            drawn = re.search(r"drew (\d+) cut", line)
            assert drawn, line
            assert int(drawn[1]) < 4000
        assert client.get("/status").json()["texts"] == 0
        assert client.post("/v1/completions", json=body(max_tokens=20)).status_code == 200
        client.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read().endswith("yocto-serve: stopped\n")


@pytest.mark.integration
def test_it_serves_while_the_run_goes_on(tmp_path: Path, save: Callable[..., None]) -> None:
    """A new checkpoint answers the next request; SIGTERM ends the server with 143."""
    run = tmp_path / "run"
    save(run, 1)
    with running(run) as (process, url), httpx.Client(base_url=url, timeout=60) as client:
        assert process.stderr
        assert "step 1" in process.stderr.readline()
        before = client.post("/v1/completions", json=body(max_tokens=5)).json()
        assert process.stderr.readline().split()[4] == before["model"] == "run@1"
        save(run, 2)
        assert process.stderr.readline() == "now serving run@2\n"
        after = client.post("/v1/completions", json=body(max_tokens=5, model="run@latest")).json()
        assert after["model"] == "run@2"
        assert after["choices"] != before["choices"]
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143

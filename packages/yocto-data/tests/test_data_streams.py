"""Sources that are no plain files: compressed by zstd, in parquet, at an address."""

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_data import DataError, Message, WorkError, iter_chats, iter_texts
from yocto_data.prep import remote
from yocto_data.prep.sources import CHATS, SourceFile, expand_sources

Prepare = Callable[..., Any]
Refused = Callable[[type[Exception], Callable[[], object]], str]
NewDirectory = Callable[[], Path]

zstd: Any = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def read(source: object) -> str:
    return "".join(iter_texts(str(source), chunk_chars=1000, keep_cr=True))


# --- compressed by zstd --------------------------------------------------------------------------


@pytest.mark.property
@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.integers(1, 40))
def test_zstd_gives_the_same_text(new_directory: NewDirectory, texts: list[str], cut: int) -> None:
    """Whatever was compressed comes back, in one frame or several; a cut file is refused."""
    path = new_directory() / "a.txt.ZST"
    text = "".join(texts).encode("utf-8", "replace").decode().lstrip("\ufeff") or "x"
    data = text.encode()
    path.write_bytes(zstd.compress(data[:cut]) + zstd.compress(data[cut:]))
    assert text == read(path)
    path.write_bytes(zstd.compress(data)[:-cut] or b"x")
    with pytest.raises(DataError, match=r"a\.txt\.ZST is"):
        read(path)


def test_a_zstd_file_of_chats(tmp_path: Path) -> None:
    """Records are told by the name in front of the ending."""
    for name in ("a.jsonl.zst", "b.json.zst"):
        (tmp_path / name).write_bytes(zstd.compress(json.dumps({"messages": CHAT}).encode()))
    assert 2 == len(list(iter_chats(tmp_path)))


# --- parquet -------------------------------------------------------------------------------------


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.property
@given(st.lists(st.text(max_size=9) | st.none(), min_size=1, max_size=200), st.integers(1, 90))
@example(["a"] * 200, 7)
def test_parquet_holds_texts(
    new_directory: NewDirectory, texts: list[str | None], group: int
) -> None:
    """Rows are documents as the records of .jsonl are, in whatever row groups they come."""
    folder = new_directory()
    rows = [{"text": (text or "").encode("utf-8", "ignore").decode()} for text in texts]
    parquet(folder / "a.parquet", rows, row_group_size=group)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(lines)
    if not any(row["text"] for row in rows):
        with pytest.raises(DataError, match="empty"):
            read(folder / "a.parquet")
        return
    assert list(iter_texts(folder / "a.jsonl")) == list(iter_texts(folder / "a.parquet"))


def test_parquet_holds_chats(tmp_path: Path) -> None:
    """Messages lie in lists of structs; columns of numbers and of bytes are not even read."""
    image = {"bytes": b"\xff", "path": "a.png"}
    rows = [{"messages": CHAT, "score": [0.5], "image": image, "id": "x"} for _ in range(100)]
    path = parquet(tmp_path / "a.parquet", rows)
    found = list(iter_chats(path))
    assert 100 == len(found)
    assert (Message("user", "Hi"), Message("assistant", "Hello.")) == found[99]
    with SourceFile(expand_sources(path, CHATS)[0]) as file:
        assert {"messages", "id"} == {*json.loads(b"".join(file.blocks()).split(b"\n")[0])}
        assert (path.name, path.stat().st_size) == (file.record().name, file.record().bytes)


def test_parquet_that_cannot_be_used(tmp_path: Path, refused: Refused) -> None:
    """What is no parquet, or lacks a text, is refused in one line that names file and row."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    assert "a.parquet is no parquet file" in refused(
        DataError, lambda: read(tmp_path / "a.parquet")
    )
    path = parquet(tmp_path / "b.parquet", [{"text": "a", "n": 1}] * 300, row_group_size=100)
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + b"\xff" * 40 + whole[90:])
    assert "b.parquet is no parquet file" in refused(DataError, lambda: read(path))
    path = parquet(tmp_path / "c.parquet", [{"body": "a"}])
    assert "c.parquet, row 1: has no field 'text'" in refused(DataError, lambda: read(path))
    chats = parquet(
        tmp_path / "d.parquet", [{"messages": CHAT}, {"messages": [CHAT[0] | {"role": "x"}]}]
    )
    message = refused(DataError, lambda: list(iter_chats(chats)))
    assert "d.parquet, row 2: message 1 is by 'x'" in message


# --- at an address -------------------------------------------------------------------------------


@dataclass
class Served:
    """What a server does: one of `breaks` is used up by each answer that it cuts off."""

    content: bytes = b""
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)  # answers end behind so many bytes
    says: int = 0  # so many bytes too much in its answer to HEAD
    length: bool = True  # whether answers state theirs
    status: int = 200
    stall: float = 0.0  # seconds of silence where an answer breaks
    asked: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        plan: Served = self.server.plan
        self.send_response(plan.status)
        if plan.length:
            self.send_header("Content-Length", str(len(plan.content) + plan.says))
        self.end_headers()

    def do_GET(self) -> None:
        plan: Served = self.server.plan
        asked = self.headers.get("Range", "")
        plan.asked.append(asked)
        content = plan.content
        if plan.ranges and asked and plan.status == 200:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content)) + 1, len(content))
            content = content[int(first) : end]
            self.send_response(206)
            span = f"bytes {first}-{end - 1}/{len(plan.content)}"
            self.send_header("Content-Range", span)
        else:
            self.send_response(plan.status)
        if plan.length:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        cut = plan.breaks.pop(0) if plan.breaks else len(content)
        self.wfile.write(content[:cut])
        if cut < len(content):
            sleep(plan.stall)
        self.close_connection = True


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


Serve = Callable[..., str]


@pytest.fixture
def serve(server: Any, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serves something from now on; returns its address."""
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0))
    monkeypatch.setattr(remote, "_SILENCE", 0.2)

    def serve(content: bytes, name: str = "a.txt", **plan: Any) -> str:
        server.plan = Served(content, **plan)
        return f"http://127.0.0.1:{server.server_port}/{name}"

    return serve


CONTENT = "".join(f"Line {n} of a text \u20ac.\n" for n in range(20_000)).encode()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt?version=2"])
@pytest.mark.parametrize("breaks", [[], [0], [1, 100_000], [5, 5]])
def test_what_breaks_is_taken_up_again(
    serve: Serve, name: str, breaks: list[int], ranges: bool
) -> None:
    """The text arrives as it is, however often the connection breaks, as long as some arrives."""
    content = gzip.compress(CONTENT) if ".gz" in name else CONTENT
    address = serve(content, name, breaks=[*breaks], ranges=ranges)
    assert CONTENT.decode() == read(address)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"breaks": [9] * 99, "ranges": False}, "broke 3 times"),
        ({"breaks": [0] * 99}, "broke 3 times at byte 0"),
        ({"breaks": [0] * 99, "stall": 0.5}, "broke 3 times at byte 0"),
        ({"says": 5}, "broke 3 times"),
        ({"says": -5}, "is longer than the"),
        ({"status": 404}, "404"),
        ({"status": 403}, "403"),
        ({"status": 500}, "500"),
    ],
)
def test_a_server_that_cannot_be_relied_on(
    serve: Serve, run: Prepare, refused: Refused, plan: dict[str, Any], says: str
) -> None:
    """One that drops, stalls, lies or refuses ends the work in one line; nothing is written."""
    address = serve(CONTENT, **plan)
    kind = DataError if "status" in plan else WorkError
    message = refused(kind, partial(run, address))
    assert says in message
    assert address in message


def test_no_length_is_said(serve: Serve) -> None:
    """Where nobody states a length, the end of the answer is the end of the text."""
    assert CONTENT.decode() == read(serve(CONTENT, length=False))


def test_content_that_changes_between_the_passes(
    serve: Serve, server: Any, run: Prepare, refused: Refused
) -> None:
    """What is encoded is what was checked, or nothing is."""
    address = serve(CONTENT)

    def changed(*_: int) -> None:
        server.plan.content = CONTENT.replace(b"7", b"8")

    assert "changed" in refused(WorkError, partial(run, address, progress=changed))


def test_nobody_listens(refused: Refused) -> None:
    """A server that is not there, a protocol that nobody knows: one line that names the address."""
    for address in ("http://127.0.0.1:9/a.txt", "nobody://a/b.txt", "http://[", "s3://a/b.txt"):
        assert address in refused(DataError, partial(iter_texts, address))


def test_parquet_at_an_address(serve: Serve, server: Any, tmp_path: Path, refused: Refused) -> None:
    """Not all of it is asked for; a server that sends no parts is named."""
    texts = [f"{n} " * 99 for n in range(900)]
    rows = [{"text": text, "rest": [len(text) / 7 + n for n in range(5000)]} for text in texts]
    path = parquet(tmp_path / "a.parquet", rows, row_group_size=100, use_dictionary=False)
    content = path.read_bytes()
    address = serve(content, "a.parquet")
    assert "".join(texts) == read(address)
    spans = [asked.removeprefix("bytes=").split("-") for asked in server.plan.asked]
    assert sum(int(last) + 1 - int(first) for first, last in spans) < len(content)
    address = serve(content, "a.parquet", ranges=False)
    assert "range requests" in refused(DataError, partial(read, address))


def test_directories_and_globs_of_a_file_system(refused: Refused, run: Prepare) -> None:
    """Of file systems that can list, a directory or glob stands for the same files as on disk."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    for name in ("b.txt", "a.jsonl.gz", "n/c.txt", "d.md"):
        text = '{"text": "a"}' if "json" in name else name
        data = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
        files.pipe(f"/d/{name}", data)
    assert "ab.txtn/c.txt" == read("memory://d")
    assert "b.txt" == read("memory://d/*.txt")
    assert "d.md" == read("memory://d/d.md")
    assert "holds no" in refused(DataError, partial(iter_texts, "memory://d/*.x"))
    assert "memory://e" in refused(DataError, partial(iter_texts, "memory://e"))
    meta = run(["memory://d/b.txt", "memory://d/n"])
    assert ["b.txt", "c.txt"] == [source.name for source in meta.sources]
    assert 2 == len(expand_sources(["memory://d/*.txt", "memory:///d/b.txt", "memory://d/n"]))


def test_a_package_that_is_missing(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an extra, what needs it says which one."""
    for name in ("fsspec", "pyarrow", "backports", "compression", "pyarrow.parquet", zstd.__name__):
        monkeypatch.setitem(sys.modules, name, None)
    for name, extra in (("a.txt.zst", "zstd"), ("a.parquet", "parquet"), ("http://a/b", "remote")):
        (tmp_path / Path(name).name).write_bytes(b"x")
        source = name if "://" in name else str(tmp_path / name)
        message = refused(DataError, partial(read, source))
        assert f"install yocto-data[{extra}]" in message

"""D11: memory does not grow with the corpus. Measured in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="needs the kernel's own count")

# Not ru_maxrss: a child inherits it from whoever started it, so that it would hide any growth.
CODE = """
import sys
import numpy as np
from yocto_data import prepare

class Bytes:
    vocab_size = 256
    def encode(self, text): return list(text.encode())
    def encode_to_numpy(self, text): return np.frombuffer(text.encode(), dtype=np.uint8)
    def decode(self, ids): return bytes(ids).decode()

meta = prepare(sys.argv[1], sys.argv[2], tokenizer=Bytes(), chunk_chars=1 << 18)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]
print(meta.train.tokens + meta.val.tokens, peak)
assert "torch" not in sys.modules
"""


def peak_kib(source: Path) -> int:
    """The most memory a process held that prepared `source`."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(source), str(source.with_suffix(".out"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tokens, peak = map(int, done.stdout.split())
    assert tokens > 0
    return peak


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("words.txt", b"some words of a line\n" * 50_000),
        ("one_line.txt", b"x" * (1 << 20)),  # D18: no place to cut, safe or not
        ("records.jsonl", b'{"text": "%s"}\n' % (b"a record of some words " * 40) * 1100),
    ],
    ids=["words", "one line", "records"],  # a megabyte is no name
)
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, name: str, unit: bytes) -> None:
    """Six times the text takes no more memory, within a few megabytes; torch is not even loaded."""
    peaks = []
    for size in (4, 24):
        folder = tmp_path / str(size)
        folder.mkdir()
        with (folder / name).open("wb") as file:
            for _ in range(size):
                file.write(unit)
        peaks.append(peak_kib(folder / name))
    assert peaks[1] - peaks[0] < 8 << 10

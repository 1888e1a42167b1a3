"""Files that are no model.pt, or no longer: each is refused in one line, and nothing is misread."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_model import GPT, GPTConfig, ModelFileError

CONFIG = GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=2)
MODEL = GPT(CONFIG, generator=torch.Generator().manual_seed(0))


def content() -> dict[str, Any]:
    head = {"format": "yocto-model", "format_version": 1, "config": CONFIG.to_dict()}
    return head | {"state_dict": dict(MODEL.state_dict())}


# As torch writes it, without any of our checks.
def written(value: object) -> bytes:
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


def repacked(data: bytes, changes: dict[str, bytes | None], *, method: int = 0) -> bytes:
    """The archive with some members replaced (None: left out), and its checksums right again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for member in old.infolist():
            part = changes.get(member.filename.removeprefix("archive/"), old.read(member))
            if part is not None:
                new.writestr(member.filename, part)
    return out.getvalue()


WHOLE = written(content())
DIRECTORY = WHOLE.index(b"PK\x01\x02")  # where the archive's own list of members begins


def one_line(message: str) -> str:
    assert (True, True) == (message.isprintable(), len(message) < 1_200)
    return message


# The error that loading raises, which is always ours and always one line.
def refusal(data: bytes) -> str:
    with pytest.raises(ModelFileError) as caught:
        GPT.load(io.BytesIO(data))
    return one_line(str(caught.value))


def loaded(data: bytes) -> GPT | None:
    """The model, or None if the file was refused as it should be."""
    try:
        return GPT.load(io.BytesIO(data))
    except ModelFileError as error:
        message = str(error)
    assert message.isprintable()
    return None


def outcome(data: bytes) -> str:
    """Is it "refused" or the "same"? Anything else is a bug."""
    model = loaded(data)
    if model is None:
        return "refused"
    assert model.config == CONFIG
    weights = MODEL.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in model.state_dict().items())
    return "same"


def test_the_untouched_file_loads() -> None:
    """The control for everything below: neither `written` nor `repacked` spoils a file."""
    assert outcome(WHOLE) == "same"
    assert outcome(repacked(WHOLE, {})) == "same"


# --- K23, K24: cut off, flipped --------------------------------------------------------------


@pytest.mark.property
@given(length=st.integers(0, len(WHOLE) - 1))
@example(length=0)
@example(length=1)
@example(length=len(WHOLE) // 2)
@example(length=len(WHOLE) - 1)
def test_a_file_cut_anywhere_is_refused(length: int) -> None:
    """K23: half a file is not a model."""
    assert outcome(WHOLE[:length]) == "refused"


def test_a_flipped_bit_in_the_weights_is_found() -> None:
    """K24: torch itself reads such a file in silence, with other values."""
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive:
        parts = [member for member in archive.infolist() if "/data/" in member.filename]
    places: list[int] = []
    for part in parts:
        start = part.header_offset + 30
        start += sum(struct.unpack_from("<2H", WHOLE, part.header_offset + 26))
        places += range(start, start + part.file_size)
    assert len(places) >= 200
    for place in places:
        damaged = bytearray(WHOLE)
        damaged[place] ^= 1 << place % 8
        assert outcome(bytes(damaged)) == "refused"


@pytest.mark.property
@given(place=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_changes_no_value(place: int, bit: int) -> None:
    """K24: wherever one bit flips, the file is refused, or nobody ever reads that bit."""
    damaged = bytearray(WHOLE)
    damaged[place] ^= 1 << bit
    outcome(bytes(damaged))


@pytest.mark.parametrize(
    ("field", "bit"), [(8, 0), (38, 4)], ids=["marked as encrypted", "marked as a directory"]
)
def test_a_flipped_mark_of_a_member_is_refused(field: int, bit: int) -> None:
    """K24: of a member marked as a directory torch returns whatever the memory held before."""
    place = DIRECTORY
    while WHOLE[place : place + 4] == b"PK\x01\x02":
        damaged = bytearray(WHOLE)
        damaged[place + field] ^= 1 << bit
        assert outcome(bytes(damaged)) == "refused"
        place += 46 + sum(struct.unpack_from("<3H", WHOLE, place + 28))


@pytest.mark.property
@given(data=st.binary(max_size=300), head=st.sampled_from([b"", b"PK\x03\x04", WHOLE[:500]]))
def test_random_bytes_are_refused(data: bytes, head: bytes) -> None:
    """No bytes make `load` raise anything but its own error."""
    assert outcome(head + data) == "refused"


@pytest.mark.property
@given(data=st.data())
def test_a_mutated_pickle_is_refused_or_harmless(data: st.DataObject) -> None:
    """Bytes of the pickle replaced, with right checksums: our error, or settings and weights."""
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive:
        parts = bytearray(archive.read("archive/data.pkl"))
    start = data.draw(st.integers(0, len(parts) - 1))
    parts[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    model = loaded(repacked(WHOLE, {"data.pkl": bytes(parts)}))
    assert model is None or model.config.n_parameters <= CONFIG.n_parameters + 10


# --- C1 to C3, C5 to C7: other files --------------------------------------------------------


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """C1: missing, empty, a directory, a pipe: said so, and never waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for name, reason in {
        "missing": "does not exist",
        "": "is not a regular file",
        "pipe": "is not a regular file",
        "empty": "an empty file",
    }.items():
        with pytest.raises(ModelFileError, match=reason):
            GPT.load(tmp_path / name)


def test_an_odd_path_stays_on_one_line(tmp_path: Path) -> None:
    """D17: a path's control characters are escaped before they are shown."""
    path = tmp_path / "new\nline\x1b[2J"
    path.write_bytes(b"text")
    with pytest.raises(ModelFileError) as caught:
        GPT.load(path)
    assert str(caught.value).isprintable()
    assert r"new\nline\x1b[2J" in str(caught.value)


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("data.pkl"))
    return out.getvalue()


def _zip(*names: str) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about repeated names
        with zipfile.ZipFile(out, "w") as archive:
            for name in names:
                archive.writestr(name, b"")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "looks_like"),
    [
        (b"To be, or not to be\n", "text"),
        (b"\n <!DOCTYPE html><html>", "a web page"),
        (b"<html><body>404", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS"),
        (gzip.compress(WHOLE, mtime=0), "a gzip file"),
        (pickle.dumps(content()["config"]), "a bare pickle"),
        (_tar(), "a tar archive"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"\xff\xfe\x00", "something else"),
        (_zip("a.txt", "b.txt"), r"a zip archive, but not a \.pt file"),
        (_zip("m/data.pkl", "m/code/m.py", "m/constants.pkl"), "TorchScript"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_of_file_are_named(data: bytes, looks_like: str) -> None:
    """C2, C5: the message says what the file looks like."""
    with pytest.raises(ModelFileError, match=looks_like):
        GPT.load(io.BytesIO(data))


def test_the_old_format_of_torch_is_not_read() -> None:
    """C5: it is a bare pickle without checksums."""
    file = io.BytesIO()
    torch.save(content(), file, _use_new_zipfile_serialization=False)
    assert "a bare pickle" in refusal(file.getvalue())


@pytest.mark.parametrize("more", [b"\0", b"x" * 22, b"x" * 76, b"x" * 1_000, WHOLE])
@pytest.mark.parametrize("data", [WHOLE, repacked(WHOLE, {})], ids=["torch's", "zipfile's"])
def test_bytes_around_the_archive_are_refused(data: bytes, more: bytes) -> None:
    """C3: nothing may follow or precede it: Python would check one archive, torch read another."""
    refusal(data + more)
    refusal(more + data)


@pytest.mark.parametrize(
    "names",
    [
        ["a/data.pkl", "a/data.pkl"],
        ["a/data.pkl", "b/data.pkl"],
        ["a/data.pkl", "a/../x"],
        ["a/data.pkl", "/etc/x"],
        ["a/data.pkl", "a/\x1b[2J"],
    ],
)
def test_oddly_named_members_are_refused(names: list[str]) -> None:
    """C3: two pickles, a path that climbs or starts at the root, control characters."""
    refusal(_zip(*names))


def test_compressed_members_are_not_inflated() -> None:
    """C6: ten megabytes of zeros in ten kilobytes are refused for being compressed."""
    bomb = repacked(WHOLE, {"data/0": bytes(10**7)}, method=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10**5
    assert "compressed" in refusal(bomb)


@pytest.mark.parametrize("numbers", [0, 1, 9, 11, 1_000])
def test_a_storage_of_another_length_is_refused(numbers: int) -> None:
    """C7: ten numbers are announced; the member holds fewer, more or none."""
    refusal(repacked(WHOLE, {"data/0": bytes(4 * numbers)}))
    refusal(repacked(WHOLE, {"data/0": None}))


def test_deep_and_shared_content_is_walked_once() -> None:
    """A hundred thousand levels, or sixty that each hold the last twice, neither fail nor last."""
    deep = pickle.dumps({"format": "yocto-model", "format_version": 1}, protocol=2)[:-1]
    deep += b"X\x01\x00\x00\x00x" + b"]" * 100_001 + b"a" * 100_000 + b"s."
    assert "holds no model settings" in refusal(repacked(WHOLE, {"data.pkl": deep}))
    shared: list[Any] = []
    for _ in range(60):
        shared = [shared, shared]
    assert outcome(written(content() | {"more": shared})) == "same"

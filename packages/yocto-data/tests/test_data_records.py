"""Rows D15, D16 and D19 of the table "Data preparation": records, and what texts may spell."""

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from yocto_data import RecordError, load_bin

Refused = Callable[..., str]
Prepare = Callable[..., Any]


def file(folder: Path, content: bytes, name: str = "a.txt") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "cut', "not valid JSON"),
        ('["a", "list"]', "must be an object with a field 'text'"),
        ('"text"', "must be an object"),
        ('{"txt": "a"}', "has no field 'text'"),
        ('{"text": null}', "field 'text' must be a string, found null"),
        ('{"text": 5}', "found int"),
        ('{"text": ["a"]}', "found list"),
        ('{"text": ""}', "field 'text' is empty"),
        ('{"text": ' + "[" * 10_000 + "]" * 10_000 + "}", "nested too deeply"),
        ("", "blank"),
        (" \t\r", "blank"),
        ('\ufeff{"text": "a"}', "not valid JSON"),
        ('{"text": "a", "text": "b"}', "'text' stands there twice"),
        ('{"text": "a", "n": NaN}', "NaN is not a number"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "digits"),
        ('{"text": "a\\ud800b"}', "lone surrogate (U+D800) at character 1"),  # D19
        ('{"text": "\\udc00\\ud800"}', "lone surrogate (U+DC00) at character 0"),  # D19
        ('{"text": "a"} {"text": "b"}', "not valid JSON"),
    ],
)
def test_d15_and_d19_records(
    tmp_path: Path, run: Prepare, refused: Refused, line: str, says: str
) -> None:
    """D15, D19: whatever a record lacks, the error names file, line and field."""
    content = "\n".join(['{"text": "good"}', line, '{"text": "good"}', ""]).encode()
    for source in (
        file(tmp_path, content, "a.jsonl"),
        file(tmp_path, gzip.compress(content, mtime=0), "a.jsonl.gz"),
    ):
        message = refused(RecordError, partial(run, source))
        assert f"{source.name}, line 2: " in message
        assert says in message


def test_d15_the_field_is_shown_safely(tmp_path: Path, run: Prepare, refused: Refused) -> None:
    """A field name with terminal codes is escaped like a path."""
    source = file(tmp_path, b'{"text": "a"}', "a.jsonl")
    message = refused(RecordError, partial(run, source, text_field="a\x1b[2J"))
    assert r"a\x1b[2J" in message


def test_d15_a_mark_before_the_first_record(tmp_path: Path, run: Prepare) -> None:
    """A file of records may begin with a mark, and may lack the last line end."""
    source = file(tmp_path, b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}', "a.jsonl")
    assert (2, 1) == (run(source).text.documents, run(source, force=True).text.boms_dropped)


def test_d15_a_record_too_long(
    tmp_path: Path, run: Prepare, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line without end is refused before it fills the memory."""
    monkeypatch.setattr("yocto_data.documents._MAX_RECORD_CHARS", 3000)
    record = json.dumps({"text": "x" * (3 << 20)})
    source = file(tmp_path, f'{{"text": "a"}}\n{record}\n'.encode(), "a.jsonl")
    assert "line 2: longer than 3000" in refused(RecordError, partial(run, source))


def test_d16_special_tokens_are_plain_text(tmp_path: Path, run: Prepare) -> None:
    """D16: text that spells a special token stays text; only we place the separator's id."""

    class WithEnd:
        vocab_size = 300
        eos_id = 299

        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def decode(self, ids: Any) -> str:
            return bytes(ids).decode()

    text = "a <|endoftext|> </s>"
    source = file(tmp_path, json.dumps({"text": text}).encode() * 1 + b"\n" + b'{"text":"b"}\n')
    source = source.rename(tmp_path / "a.jsonl")
    run(source, tokenizer=WithEnd())
    ids = [*load_bin(tmp_path / "out" / "train.bin"), *load_bin(tmp_path / "out" / "val.bin")]
    assert 2 == ids.count(299)
    assert sorted([*text.encode(), *b"b", 299, 299]) == sorted(ids)

"""Rows D15, D16 and D19 of the table "Data preparation": records, and what texts may spell."""

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from yocto_data import DataError, Tokenizer

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
        ('{"txt": "a"}', "has no field 'text'; pass text_field=NAME"),
        ('{"text": 5}', "must be a string, found a number"),
        ('{"text": true}', "found true or false"),
        ('{"text": ["a"]}', "found a list"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('\ufeff{"text": "a"}', "not valid JSON"),
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
        message = refused(DataError, partial(run, source))
        assert f"{source.name}, line 2: " in message
        assert says in message


@pytest.mark.parametrize(
    ("line", "empty"),
    [
        ("", 0),
        (" \t\r", 0),
        ('{"text": "more", "score": NaN, "best": -Infinity}', 0),
        ('{"text": "a", "text": "more"}', 0),
        ('{"id": 1, "text": "more", "id": 2}', 0),
        ('{"text": "more", "n": ' + "9" * 5000 + "}", 0),
        ('{"text": ""}', 1),
        ('{"text": null}', 1),
        ('{"text": null, "n": [{"text": 5}]}', 1),
    ],
)
def test_only_the_text_of_a_record_matters(
    tmp_path: Path, run: Prepare, line: str, empty: int
) -> None:
    """Other people's records: blank lines and odd members pass, empty texts are counted."""
    lines = ['{"text": "good"}', line, '{"text": "good"}', ""]
    meta = run(file(tmp_path, "\n".join(lines).encode(), "a.jsonl"))
    assert (2 + ("more" in line), empty) == (meta.text.documents, meta.text.empty_documents)
    assert 4 * meta.text.documents == meta.train.tokens + meta.val.tokens


def test_d15_a_mark_before_the_first_record(tmp_path: Path, run: Prepare) -> None:
    """A file of records may begin with a mark, and may lack the last line end."""
    source = file(tmp_path, b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}', "a.jsonl")
    assert (2, 1) == (run(source).text.documents, run(source, force=True).text.boms_dropped)


def test_d15_a_record_too_long(
    tmp_path: Path, run: Prepare, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line without end is refused before it fills the memory."""
    monkeypatch.setattr("yocto_data.prep.documents._MAX_RECORD_CHARS", 3000)
    record = json.dumps({"text": "x" * (3 << 20)})
    source = file(tmp_path, f'{{"text": "a"}}\n{record}\n'.encode(), "a.jsonl")
    assert "line 2: longer than 3000" in refused(DataError, partial(run, source))


def test_d16_special_tokens_are_plain_text(
    prepared: Callable[..., Any], code_point_tokenizer: Tokenizer
) -> None:
    """D16: text that spells a special token stays text; only we place the separator's id."""
    text = "a <|endoftext|> </s>"
    _, train, val = prepared([text, "b"], tokenizer=code_point_tokenizer, separator=299)
    assert sorted([*text.encode(), *b"b", 299, 299]) == sorted(train + val)

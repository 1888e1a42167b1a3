"""The records of a run: rows of metrics, and config.toml."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yocto_train import Run


@pytest.mark.property
@given(
    rows=st.lists(
        st.fixed_dictionaries({"step": st.integers(0, 9), "text": st.text()}), max_size=6
    ),
    step=st.integers(0, 9),
    torn=st.integers(0, 40),
)
@example(rows=[{"step": 1, "text": "a\u2028b\x85c\nd\x1e"}], step=1, torn=0)
@example(rows=[{"step": 1, "text": ""}, {"step": 2, "text": "x"}], step=1, torn=5)
def test_rows(
    rows: list[dict[str, object]], step: int, torn: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any text comes back as it was, line separators included.

    Dropping keeps exactly the whole rows up to the step, and doing it twice is doing it once.
    """
    run = Run(tmp_path_factory.mktemp("rows"))
    for row in rows:
        run.record("metrics.jsonl", row)
    assert rows == run.rows("metrics.jsonl")
    path = run.path / "metrics.jsonl"
    if rows and torn:
        cut = len(json.dumps(rows[-1], ensure_ascii=False).encode())
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - 1 - min(torn, cut - 1)])
        rows = rows[:-1]
    for _ in range(2):
        run.drop_rows_after(step)
        assert [row for row in rows if int(str(row["step"])) <= step] == run.rows("metrics.jsonl")
    run.record("metrics.jsonl", {"step": 99})
    assert {"step": 99} == run.rows("metrics.jsonl")[-1]


def test_lines_that_are_no_rows_stay(tmp_path: Path) -> None:
    """What somebody else wrote is skipped when read, and not removed."""
    run = Run(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n{"step": 5}\n{"st')
    assert [{"step": 1}, {"step": 5}] == run.rows("metrics.jsonl")
    run.drop_rows_after(1)
    assert b'{"step": 1}\n\xff\xfe\n[1]\n' == (tmp_path / "metrics.jsonl").read_bytes()


def test_half_a_row_is_taken_back(tmp_path: Path) -> None:
    """K10: after a full disk, the next row is not glued to the half that still fitted."""
    run = Run(tmp_path)
    run.record("metrics.jsonl", {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))  # as if the disk were full
    try:
        with pytest.raises(OSError, match="too large"):
            run.record("metrics.jsonl", {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run.record("metrics.jsonl", {"step": 3})
    assert [{"step": 1}, {"step": 3}] == run.rows("metrics.jsonl")


def test_config_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write leaves the old config.toml and no temporary file."""
    run = Run(tmp_path)
    run.write_config("a = 1\n")

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for call in ("fsync", "replace"):
        monkeypatch.setattr(os, call, refuse)
        with pytest.raises(OSError, match="Input/output"):
            run.write_config("a = 2\n")
        monkeypatch.undo()
    assert ["config.toml"] == [path.name for path in tmp_path.iterdir()]
    assert "a = 1\n" == (tmp_path / "config.toml").read_text()

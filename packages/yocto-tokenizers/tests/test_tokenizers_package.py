"""The package as its users meet it: names, README, optional parts, and what importing costs."""

import inspect
import re
import subprocess
import sys
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
import yocto_tokenizers
from yocto_tokenizers import TokenizerError


def test_public_names() -> None:
    """The public names are these, sorted, and all exist."""
    expected = [
        "CHAT_TOKENS",
        "CharTokenizer",
        "EncodedChat",
        "HuggingFaceTokenizer",
        "MissingExtraError",
        "SentencePieceTokenizer",
        "SpecialTokenError",
        "StreamDecoder",
        "TextError",
        "TokenIdError",
        "Tokenizer",
        "TokenizerError",
        "TokenizerFileError",
        "TokenizerWriteError",
        "UnknownCharacterError",
        "VocabularyError",
        "WordLevelTokenizer",
        "encode_chat",
        "load_tokenizer",
    ]
    assert expected == yocto_tokenizers.__all__ == sorted(yocto_tokenizers.__all__)
    assert all(hasattr(yocto_tokenizers, name) for name in expected)


def test_version_is_the_metadatas() -> None:
    """The version a program sees is the one that was installed."""
    assert version("yocto-tokenizers") == yocto_tokenizers.__version__


def test_every_error_has_the_one_base() -> None:
    """Every error class is a TokenizerError, is public, and stands in the tree of errors.py."""
    from yocto_tokenizers import errors

    classes = [
        item
        for _, item in inspect.getmembers(errors, inspect.isclass)
        if issubclass(item, Exception)
    ]
    tree = errors.__doc__ or ""
    for cls in classes:
        assert issubclass(cls, TokenizerError)
        assert issubclass(cls, ValueError)
        assert cls.__name__ in yocto_tokenizers.__all__
        assert cls.__name__ in tree


def readme() -> str:
    """The README beside the tests, or the one that the installed wheel carries."""
    path = Path(__file__).parents[1] / "README.md"
    if path.exists():
        return path.read_text(encoding="utf-8")
    return str(metadata("yocto-tokenizers").get_payload())  # type: ignore[attr-defined]


def test_the_readme_example_runs(tmp_path: Path) -> None:
    """Every Python block of the README runs by itself, without printing."""
    blocks = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)
    assert len(blocks) == 1
    for block in blocks:
        assert len(block.strip().splitlines()) <= 12
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]


def test_the_readme_names_real_things() -> None:
    """Every class and function in the README's code marks exists."""
    for name in re.findall(r"`([A-Z]\w+Tokenizer|encode_chat|TokenizerError)\b", readme()):
        assert name in yocto_tokenizers.__all__


def test_importing_needs_no_optional_library(tmp_path: Path) -> None:
    """Importing loads neither the optional library nor torch, writes nothing and prints nothing."""
    code = (
        "import sys, yocto_tokenizers as y; y.CharTokenizer.train('ab').encode('ab');"
        "assert not {'tokenizers', 'torch', 'google.protobuf'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train", "encode", "decode", "save", "load", "fingerprint"])
def test_every_public_method_is_documented(name: str) -> None:
    """The members of the protocol have a docstring on every rung."""
    for cls in (
        yocto_tokenizers.CharTokenizer,
        yocto_tokenizers.WordLevelTokenizer,
        yocto_tokenizers.SentencePieceTokenizer,
    ):
        assert inspect.getdoc(getattr(cls, name))

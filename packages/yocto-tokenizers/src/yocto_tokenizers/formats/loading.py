"""One way to open any tokenizer: the content decides what it is."""

from os import PathLike
from pathlib import Path

from yocto_tokenizers.base import BaseTokenizer
from yocto_tokenizers.char import CharTokenizer
from yocto_tokenizers.errors import TokenizerFileError, shown
from yocto_tokenizers.fast.checks import file_at, read_bytes
from yocto_tokenizers.formats.hugging_face import HuggingFaceTokenizer, is_hugging_face
from yocto_tokenizers.formats.vocabulary import parse_json
from yocto_tokenizers.sentence_piece import SentencePieceTokenizer
from yocto_tokenizers.word_level import WordLevelTokenizer

_FILE_NAMES = ("vocab.json", "tokenizer.json", "tokenizer.model")


def load_tokenizer(path: str | PathLike[str]) -> BaseTokenizer:
    """Open a vocab.json, tokenizer.json or tokenizer.model, or a directory that holds one of them.

    Raises:
        TokenizerFileError: no file, several kinds in one directory, or a file that is damaged or of
            an unknown kind.
    """
    file = _the_file(path)
    content = read_bytes(file)
    return _class_for(file, content).from_bytes(content, source=shown(file))


def _class_for(file: Path, content: bytes) -> type[BaseTokenizer]:
    """The class that reads this content; the name only tells what damaged content should be.

    Two formats share the name tokenizer.json: ours states its kind, Hugging Face's has a model.
    """
    if file.suffix == ".model" or (file.suffix != ".json" and content.lstrip()[:1] != b"{"):
        return SentencePieceTokenizer
    document = parse_json(content, shown(file))
    if is_hugging_face(document):
        return HuggingFaceTokenizer
    for cls in (CharTokenizer, WordLevelTokenizer):
        if document.get("kind") == cls.kind:
            return cls
    raise TokenizerFileError(
        f"{shown(file)} is not a tokenizer of a known kind (its kind is "
        f"{shown(document.get('kind'))}); name a tokenizer's file, or upgrade yocto-tokenizers"
    )


def _the_file(path: str | PathLike[str]) -> Path:
    """The path itself, or the one tokenizer file in it."""
    files = [file_at(path, name) for name in _FILE_NAMES]
    if files[0] == Path(path):  # not a directory
        return files[0]
    found = [file for file in files if file.exists()]
    if not found:
        raise TokenizerFileError(
            f"{shown(path)} holds no tokenizer; expected one of {', '.join(_FILE_NAMES)}"
        )
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise TokenizerFileError(
            f"{shown(path)} holds several tokenizer files, {names}; give the path of the one that "
            "belongs to the data or the model, or move the others away"
        )
    return found[0]

"""One way to open any tokenizer: the content decides what it is."""

from os import PathLike
from pathlib import Path

from yocto_tokenizers.base import BaseTokenizer
from yocto_tokenizers.char import CharTokenizer
from yocto_tokenizers.errors import TokenizerFileError, quoted
from yocto_tokenizers.hugging_face import HuggingFaceTokenizer, is_hugging_face
from yocto_tokenizers.protocol import Tokenizer
from yocto_tokenizers.sentence_piece import SentencePieceTokenizer
from yocto_tokenizers.storage import is_directory, read_bytes
from yocto_tokenizers.strict_json import parse_object
from yocto_tokenizers.vocabulary import stated_kind
from yocto_tokenizers.word_level import WordLevelTokenizer

_JSON_KINDS: dict[str, type[BaseTokenizer]] = {
    CharTokenizer.kind: CharTokenizer,
    WordLevelTokenizer.kind: WordLevelTokenizer,
}
FILE_NAMES = ("vocab.json", "tokenizer.json", "tokenizer.model")


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """Open a vocab.json, tokenizer.json or tokenizer.model, or a directory that holds one of them.

    Raises:
        TokenizerFileError: nothing there, several kinds in one directory, or a file that is damaged
            or of an unknown kind.
    """
    file = _the_file(path)
    content = read_bytes(file)
    return _class_for(file, content).from_bytes(content, source=quoted(file))


def _class_for(file: Path, content: bytes) -> type[BaseTokenizer]:
    """The class that reads this content; the name decides only what broken content was meant to be.

    Two formats share the name tokenizer.json: ours states its kind, Hugging Face's has a model.
    """
    if file.suffix == ".model" or (file.suffix != ".json" and content.lstrip()[:1] != b"{"):
        return SentencePieceTokenizer
    source = quoted(file)
    document = parse_object(content, source)
    if is_hugging_face(document):
        return HuggingFaceTokenizer
    kind = stated_kind(document, source)
    if kind not in _JSON_KINDS:
        raise TokenizerFileError(
            f"{source} is of the unknown kind {quoted(kind)}; upgrade yocto-tokenizers"
        )
    return _JSON_KINDS[kind]


def _the_file(path: str | PathLike[str]) -> Path:
    """The path itself, or the one tokenizer file in it."""
    if not is_directory(path):
        return Path(path)
    found = [name for name in FILE_NAMES if (Path(path) / name).exists()]
    if not found:
        raise TokenizerFileError(
            f"{quoted(path)} holds no tokenizer; expected one of {', '.join(FILE_NAMES)}"
        )
    if len(found) > 1:
        raise TokenizerFileError(
            f"{quoted(path)} holds several tokenizers, {' and '.join(found)}; name one of them"
        )
    return Path(path) / found[0]

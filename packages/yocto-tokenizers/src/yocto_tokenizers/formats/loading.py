"""One way to open any tokenizer: the content decides what it is."""

from contextlib import suppress
from os import PathLike
from os.path import lexists
from pathlib import Path

from yocto_tokenizers.base import BaseTokenizer
from yocto_tokenizers.char import CharTokenizer
from yocto_tokenizers.errors import TokenizerFileError, shown
from yocto_tokenizers.fast.checks import file_at, read_bytes
from yocto_tokenizers.formats.hugging_face import HuggingFaceTokenizer, is_hugging_face
from yocto_tokenizers.formats.sentence_piece_model import ModelContent
from yocto_tokenizers.formats.tokenizer_json import head_of
from yocto_tokenizers.formats.vocabulary import parse_json
from yocto_tokenizers.sentence_piece import SentencePieceTokenizer
from yocto_tokenizers.word_level import WordLevelTokenizer

CharVocab = CharTokenizer  # its earlier name

_FILE_NAMES = ("vocab.json", "tokenizer.json", "tokenizer.model")


def load_tokenizer(path: str | PathLike[str]) -> BaseTokenizer:
    """Open a vocab.json, tokenizer.json or tokenizer.model, or a directory that holds some of them.

    Of several, the one that says most is read: our own vocab.json, else a tokenizer.model that
    gives every text back, else tokenizer.json. A `tokenizer_config.json` beside a tokenizer.json of
    Hugging Face says which of its tokens begin and end a text.

    Raises:
        TokenizerFileError: no file, or a file that is damaged or of an unknown kind.
    """
    file = _the_file(path)
    return class_for(file, read_bytes(file), source=shown(file)).load(file)


def class_for(file: Path, content: bytes, *, source: str) -> type[BaseTokenizer]:
    """The class that reads this content; the name only tells what damaged content should be.

    Files of words and of Hugging Face share name and layout; ours says by a key that it is ours.
    """
    if file.suffix == ".model" or (file.suffix != ".json" and content.lstrip()[:1] != b"{"):
        return SentencePieceTokenizer
    # Ours say their kind, spelled like this. Large files of others need not be parsed to see it.
    if b'"added_tokens"' in content and b'"kind": "' not in content:
        return HuggingFaceTokenizer
    document = parse_json(content, source)
    kind = head_of(document).get("kind")
    for cls in (CharTokenizer, WordLevelTokenizer):
        if kind == cls.kind:
            return cls
    if is_hugging_face(document):
        return HuggingFaceTokenizer
    raise TokenizerFileError(
        f"{source} is not a tokenizer of a known kind (its kind is {shown(kind)}); "
        "name a tokenizer's file, or upgrade yocto-tokenizers"
    )


def _the_file(path: str | PathLike[str]) -> Path:
    """The path itself, or the tokenizer file in it; of several, the one that says most."""
    files = vocabulary, document, model = [file_at(path, name) for name in _FILE_NAMES]
    if vocabulary == Path(path):  # not a directory
        return vocabulary
    found = [file for file in files if lexists(file)]  # a link to nothing is named
    if not found:
        raise TokenizerFileError(
            f"{shown(path)} holds no tokenizer; expected one of {', '.join(_FILE_NAMES)}"
        )
    has_merges = found == [vocabulary] and lexists(vocabulary.with_name("merges.txt"))
    if len(found) == 1 and not has_merges:
        return found[0]
    # GPT-2 has a vocab.json, too: its keys are tokens.
    if vocabulary in found:
        parsed = parse_json(read_bytes(vocabulary), shown(vocabulary))
        if head_of(parsed).get("kind") == CharTokenizer.kind:
            return vocabulary
    if has_merges:
        raise TokenizerFileError(
            f"{shown(path)} holds vocab.json and merges.txt, but no tokenizer.json; fetch it, or "
            "make it by transformers: AutoTokenizer.from_pretrained, then save_pretrained"
        )
    if model in found and (document not in found or _is_lossless(model)):
        return model
    return document


def _is_lossless(model: Path) -> bool:
    """Whether a tokenizer.model is sentencepiece's, and gives every text back."""
    content = read_bytes(model)
    with suppress(TokenizerFileError):  # others use the name for formats of their own
        return ModelContent(content, shown(model)).lossless
    return False

"""Texts as they come in, checked once for every rung, before any native code sees them."""

from collections.abc import Iterable

from yocto_tokenizers.errors import TextError


def checked_text(text: object) -> str:
    """The text itself, if it is a `str`. A list is an error: `encode_batch` is for those.

    Raises:
        TextError: it is something else.
    """
    if not isinstance(text, str):
        raise TextError(
            f"text is a {type(text).__name__}, expected str; use encode_batch for several texts"
        )
    return text


def checked_unicode(text: object) -> str:
    """The text itself, if it can be written as UTF-8: native code must never see a surrogate.

    Raises:
        TextError: it is no `str`, or holds a lone surrogate.
    """
    checked = checked_text(text)
    if not checked.isascii():
        try:
            checked.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TextError(
                f"text holds the lone surrogate U+{ord(checked[error.start]):04X} at index "
                f"{error.start}; decode the source as UTF-8, or drop it"
            ) from None
    return checked


def checked_texts(texts: object) -> Iterable[str]:
    """Several texts. One `str` is an error, because iterating it would take single characters.

    Raises:
        TextError: it is a `str`, or nothing that can be iterated.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TextError(f"texts is a {type(texts).__name__}, expected a list of str; use encode")
    return texts


def each_text(texts: str | Iterable[str]) -> Iterable[str]:
    """The texts to train on, one after the other: one `str`, or an iterable of them.

    Raises:
        TextError: an item is no `str`, or holds a lone surrogate; its index is named.
    """
    if isinstance(texts, str):
        yield checked_unicode(texts)
        return
    for index, text in enumerate(checked_texts(texts)):
        try:
            yield checked_unicode(text)
        except TextError as error:
            raise TextError(f"item {index} of the texts: {error}") from None

"""Special tokens: ids that no text can produce and that decode to nothing."""

from collections.abc import Iterable

from yocto_tokenizers.errors import SpecialTokenError, quoted

BOS = "<s>"
EOS = "</s>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
UNK = "<unk>"

#: What a conversation needs, in the order of their ids.
CHAT_TOKENS = (BOS, EOS, USER, ASSISTANT)

MAX_NAME_CHARACTERS = 64


def checked_names(names: Iterable[str], *, reserved: Iterable[str] = ()) -> tuple[str, ...]:
    """The names as a tuple, if they can be special tokens.

    A name has 2 to 64 printable characters without spaces: one character would collide with the
    character itself, and a name is shown in messages and files.

    Raises:
        SpecialTokenError: a name is unfit, given twice, or among `reserved`.
    """
    if isinstance(names, str):
        raise SpecialTokenError(
            f"special_tokens is the string {quoted(names)}; give a list or tuple of names"
        )
    taken = set(reserved)
    checked: list[str] = []
    for name in names:
        if not isinstance(name, str):
            raise SpecialTokenError(f"special token {quoted(name)} is no string; give names")
        if not 2 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable() or " " in name:
            raise SpecialTokenError(
                f"special token {quoted(name)} is unfit; use 2 to {MAX_NAME_CHARACTERS} "
                "printable characters without spaces"
            )
        if name in taken:
            raise SpecialTokenError(f"special token {quoted(name)} is already defined; drop it")
        taken.add(name)
        checked.append(name)
    return tuple(checked)

"""A conversation as ids: `<s>`, then for each turn user, message, assistant, reply, `</s>`.

It is built from ids and never by putting special names into a text, so that no message can pose as
another speaker: `<|assistant|>` typed by a user is plain characters.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from yocto_tokenizers.errors import SpecialTokenError, TextError
from yocto_tokenizers.protocol import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EncodedChat:
    """A conversation, ready for training or for a reply.

    Attributes:
        ids: the ids of the whole conversation.
        loss_mask: as long as `ids`; 1 on the ids the model is to produce (each reply and the `</s>`
            that closes it), 0 elsewhere. `loss_mask[i]` belongs to `ids[i]` as a target.
    """

    ids: list[int]
    loss_mask: list[int]


def encode_chat(
    tokenizer: Tokenizer,
    turns: Iterable[tuple[str, str | None]],
    *,
    encode: Callable[[str], list[int]] | None = None,
) -> EncodedChat:
    """The ids and loss mask of a conversation.

    Args:
        tokenizer: any tokenizer with the four tokens of `CHAT_TOKENS`.
        turns: message and reply of each turn. The last reply may be None: the ids then end with
            the assistant token, where the model goes on.
        encode: used instead of `tokenizer.encode`, for instance with an error policy:
            `functools.partial(tokenizer.encode, errors="replace")`.

    Raises:
        SpecialTokenError: the tokenizer lacks one of the four tokens.
        TextError: a reply other than the last is None.
    """
    to_ids = encode or tokenizer.encode
    bos, eos, user, assistant = _chat_ids(tokenizer)
    ids, mask = [bos], [0]
    is_open = False
    for index, (message, reply) in enumerate(turns):
        if is_open:
            raise TextError(f"turn {index - 1} has no reply and is not the last; give its reply")
        prompt = [user, *to_ids(message), assistant]
        answer = [] if reply is None else [*to_ids(reply), eos]
        ids += prompt + answer
        mask += [0] * len(prompt) + [1] * len(answer)
        is_open = reply is None
    return EncodedChat(ids=ids, loss_mask=mask)


def _chat_ids(tokenizer: Tokenizer) -> tuple[int, int, int, int]:
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    user, assistant = tokenizer.user_id, tokenizer.assistant_id
    if bos is None or eos is None or user is None or assistant is None:
        found = {"bos": bos, "eos": eos, "user": user, "assistant": assistant}
        lacking = ", ".join(name for name, token_id in found.items() if token_id is None)
        raise SpecialTokenError(
            f"the tokenizer has no {lacking} token; train it with special_tokens=CHAT_TOKENS"
        )
    return bos, eos, user, assistant

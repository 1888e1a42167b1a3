"""How likely a given text is, token by token: what `echo` with `logprobs` asks for."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from yocto_model import Token

from yocto_serve.models import Loaded

_AT_ONCE = 256  # tokens: the logits of a large vocabulary take much memory


@torch.no_grad()
def scored(model: Loaded, ids: Sequence[int], alternatives: int | None) -> list[Token]:
    """The tokens of a text with their log-probabilities: the first has none, no text for None."""
    decoder = model.tokenizer.stream_decoder()
    texts = [decoder.push(token) for token in ids]
    texts[-1] += decoder.finish()
    tokens = [Token(id=token, text=text) for token, text in zip(ids, texts, strict=True)]
    if alternatives is None:
        return tokens
    device = model.model.token_emb.weight.device
    x = model.model.hidden_states(torch.tensor([ids], device=device))[0]  # (T, C)
    for first in range(0, len(ids) - 1, _AT_ONCE):
        logits = model.model.logits(x[first : first + _AT_ONCE])[:, : model.tokenizer.vocab_size]
        table = logits.float().log_softmax(dim=-1)
        top = torch.topk(table, min(alternatives, table.shape[-1]))
        for row, at in enumerate(range(first + 1, min(first + len(table) + 1, len(ids)))):
            likeliest = zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
            logprob = float(table[row, ids[at]])
            tokens[at] = replace(tokens[at], logprob=logprob, alternatives=(*likeliest,))
    return tokens

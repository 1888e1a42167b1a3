"""SampleWriter: what the model writes while it trains, always with the same seed and prompt."""

from collections.abc import Callable

from yocto_data import TokenDataset
from yocto_model import GPT, SamplingOptions, TextGenerator
from yocto_tokenizers import Tokenizer, TokenizerError

from yocto_train.config import TrainConfig
from yocto_train.errors import TrainConfigError


class SampleWriter:
    """Continues `config.sample_prompt`; training's random state is left alone.

    Args:
        tokenizer: the model's.
        data: its first token stands in for a prompt that cannot be had otherwise.
        config: prompt, length and seed.

    Raises:
        TrainConfigError: the prompt cannot be encoded.
    """

    def __init__(self, tokenizer: Tokenizer, data: TokenDataset, config: TrainConfig) -> None:
        self._tokenizer, self._config = tokenizer, config
        self._ids = _prompt_ids(tokenizer, data, config.sample_prompt)
        self.prompt = tokenizer.decode(self._ids)

    def write(self, model: GPT, should_stop: Callable[[], bool]) -> str | None:
        """The continuation; None if `should_stop` said so before it was complete."""
        # A new generator each time: the weights have moved, so no cache may be kept.
        stream = TextGenerator(model, self._tokenizer).stream(
            self._ids,
            self._config.sample_tokens,
            options=SamplingOptions(temperature=0.8),
            seed=self._config.seed,
        )
        pieces = []
        for piece in stream:
            if should_stop():
                return None
            pieces.append(piece)
        return "".join(pieces)


def _prompt_ids(tokenizer: Tokenizer, data: TokenDataset, prompt: str) -> list[int]:
    """The prompt's ids; of an empty one a line end's, or else the first token of the data."""
    if prompt:
        try:
            ids = tokenizer.encode(prompt)
        except TokenizerError as error:
            raise TrainConfigError(f"sample_prompt cannot be used: {error}") from error
        if ids:
            return ids
    first, _ = data.window(0, 1)
    try:
        return tokenizer.encode("\n") or first.tolist()
    except ValueError:  # a text without a line end
        return [int(first[0])]

"""Random 64-bit words that depend on nothing but their address."""

import threading
from typing import Any

import numpy as np

# One generator, set to the address of each draw: making a new one takes six times as long, since
# NumPy then gathers entropy that is never used.
_generator = np.random.Philox(0)
_one_at_a_time = threading.Lock()
_NO_WORDS_LEFT = np.zeros(4, dtype=np.uint64)


def random_words(*, key: tuple[int, int], stream: tuple[int, int], count: int) -> np.ndarray:
    """Words of a Philox 4x64 stream (Salmon et al. 2011): uint64, shape (count,).

    The raw words are the same in every NumPy version, which the methods of `Generator` are not.
    `key` and `stream` are numbers within 64 bits; `stream` becomes the upper two words of the
    counter, which keeps streams of one key apart.
    """
    state: Any = {
        "bit_generator": "Philox",
        # Arrays, since a list that holds numbers above 2^63 would go through float.
        "state": {
            "counter": np.array((0, 0, *stream), dtype=np.uint64),
            "key": np.array(key, dtype=np.uint64),
        },
        "buffer": _NO_WORDS_LEFT,
        "buffer_pos": 4,  # all used: the next word is drawn afresh
        "has_uint32": 0,
        "uinteger": 0,
    }
    with _one_at_a_time:
        _generator.state = state
        words: np.ndarray = _generator.random_raw(count)
        return words

"""model.pt: what is saved comes back, whole."""

import io

import pytest
from yocto_model import GPT, GPTConfig

TINY = GPTConfig(vocab_size=7, block_size=4, n_layer=1, n_head=2, n_embd=4)


def saved(model: GPT) -> bytes:
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()


@pytest.mark.parametrize("tie", [True, False])
def test_a_loaded_model_ties_its_head_as_the_saved_one_did(tie: bool) -> None:
    """M7: tied weights are one tensor, also after `load`: else training would part them."""
    model = GPT.load(io.BytesIO(saved(GPT(TINY.replace(tie_weights=tie)))))
    assert tie == (model.head.weight is model.token_emb.weight)
    assert model.config.n_parameters == sum(p.numel() for p in model.parameters())

"""Training under autocast: products in bfloat16, the rest in float32."""

import pytest
import torch
from yocto_model import GPT, GPTConfig


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_bfloat16_changes_little(arch: str) -> None:
    """Logits and gradients in bfloat16 are those of float32, to its 8 bits, on a CPU."""
    config = GPTConfig.from_arch(
        arch, vocab_size=11, block_size=16, n_layer=2, n_head=2, n_embd=16, zero_init=False
    )
    generator = torch.Generator().manual_seed(1)
    model = GPT(config, generator=generator)
    idx = torch.randint(11, (3, 16), generator=generator)
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(idx)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), idx.flatten())
        loss.backward()  # type: ignore[no-untyped-call] # torch has no type here
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append(
            (logits.detach().float(), torch.cat([g.flatten() for g in gradients if g is not None]))
        )
    (logits, gradient), (half_logits, half_gradient) = results
    assert not torch.equal(logits, half_logits)
    torch.testing.assert_close(
        half_logits, logits, rtol=0, atol=0.05 * float(logits.detach().std())
    )
    assert torch.nn.functional.cosine_similarity(gradient, half_gradient, dim=0) > 0.999


def test_attention_stays_in_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 its backward pass takes twice as long there, and the products gain."""
    seen = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return original(query, *args, **options)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", watched)
    config = GPTConfig.from_arch(
        "modern", vocab_size=11, block_size=16, n_layer=1, n_head=2, n_embd=16
    )
    with torch.autocast("cpu", torch.bfloat16):
        GPT(config)(torch.zeros(1, 4, dtype=torch.int64))
    assert [(torch.float32, False)] == seen

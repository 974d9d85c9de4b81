"""The exchangeable attention core, its cache, and a network that steps."""

import pytest
import torch

from app.models.attention import KeyValueCache, SoftmaxAttention, causal_mask
from app.models.gpt import GPT
from tests import tolerances
from tests.parity import relative_error


@pytest.mark.parametrize(("T", "S"), [(1, 1), (7, 7), (1, 7), (3, 7)])
def test_last_queries_see_what_they_saw_in_the_whole(T: int, S: int):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, S, 5, generator=generator).unbind()
    whole = SoftmaxAttention()(q, k, v)
    part = SoftmaxAttention()(q[:, :, S - T :], k, v)
    assert relative_error(part, whole[:, :, S - T :]) <= tolerances.OUTPUT


def test_the_mask_is_causal():
    mask = causal_mask(2, 4, torch.device("cpu"))
    assert mask is not None
    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]


def test_a_cache_holds_what_was_appended():
    cache = KeyValueCache(5)
    first, second = torch.randn(2, 1, 2, 2, 3).unbind()
    cache.append(first, first)
    keys, values = cache.append(second, 2 * second)
    assert cache.length == 4
    assert torch.equal(keys, torch.cat([first, second], 2))
    assert torch.equal(values, torch.cat([first, 2 * second], 2))
    with pytest.raises(AssertionError):
        cache.append(first, first)


def test_gpt_steps_as_it_reads_the_whole():
    torch.manual_seed(0)
    network = GPT(vocab_size=11, block_size=9, n_layers=2, n_heads=2, d_model=8).eval()
    idx = torch.randint(11, (3, 9))
    expected = network(idx).logits
    logits, cache = network.prefill(idx[:, :4])
    assert relative_error(logits, expected[:, 3]) <= tolerances.OUTPUT
    for t in range(4, 9):
        logits = network.step(idx[:, t], cache)
        assert relative_error(logits, expected[:, t]) <= tolerances.OUTPUT
    with pytest.raises(ValueError, match="at most block_size = 9"):
        network.step(idx[:, 0], cache)

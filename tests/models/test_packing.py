"""Five trits in a byte, and nothing lost."""

import pytest
import torch

from app.models.tilelli.packing import N_CODES, pack, unpack


@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (7, 3), (2, 4, 9), (1000, 11)])
def test_trits_come_back(shape: tuple[int, ...]) -> None:
    trits = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    packed = pack(trits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-trits.numel() // 5)
    assert torch.equal(unpack(packed, shape, torch.int8), trits)


def test_every_byte_stands_for_five_trits_of_its_own() -> None:
    every = torch.arange(N_CODES).to(torch.uint8)
    trits = unpack(every, (N_CODES, 5), torch.int8)
    assert len(trits.unique(dim=0)) == N_CODES
    assert torch.equal(pack(trits), every)


def test_what_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="7 trits are 2 bytes"):
        unpack(torch.zeros(3, dtype=torch.uint8), (7,))
    with pytest.raises(ValueError, match="a byte is 243"):
        unpack(torch.tensor([243], dtype=torch.uint8), (5,))

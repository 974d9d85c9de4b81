"""What must hold of a language model, whatever is in it."""

from pathlib import Path

import torch
from grulm import GRULM

IDX = torch.arange(24).reshape(2, 12) % 11


def network() -> GRULM:
    torch.manual_seed(0)
    return GRULM(vocab_size=11, d_model=16)


def test_no_position_sees_what_comes_after_it() -> None:
    changed = torch.cat([IDX[:, :8], (IDX[:, 8:] + 1) % 11], 1)
    before, after = (network().eval()(idx).logits for idx in (IDX, changed))
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_it_learns() -> None:
    model = network()
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-2), []
    for _ in range(60):
        losses.append(model(IDX, (IDX + 1) % 11).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


def test_it_is_built_again_from_its_description(tmp_path: Path) -> None:
    model = network().eval()
    torch.save((model.description(), model.state_dict()), tmp_path / "model.pt")
    description, weights = torch.load(tmp_path / "model.pt")
    again = GRULM(**description["init_args"]).eval()
    again.load_state_dict(weights)
    assert torch.equal(again(IDX).logits, model(IDX).logits)

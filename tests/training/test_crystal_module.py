"""CrystalGPTModule: what it refuses, what it warns of, and where its directions come from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app import options
from app.models.crystal import ResidualBasis, random_basis, weights_digest
from app.models.gpt import GPT
from app.run.errors import ConfigurationError
from app.training import CrystalGPTModule

SIZE: dict[str, Any] = dict(vocab_size=7, block_size=8, n_layers=2, n_heads=2, d_model=8)


def test_problems_of_network_and_training_come_together() -> None:
    wrong = {"rank": 5, "crystal_layers": [2], "learning_rate": -1.0, "n_heads": 2}
    assert [str(problem) for problem in options.problems(CrystalGPTModule, SIZE | wrong)] == [
        "learning_rate = -1.0: must be positive",
        "crystal_layers = [2]: there is no block 2; must lie in 0 … 1",
        "rank = 5: must be at most 4, the head width d_model / n_heads",
    ]


def test_what_the_other_mode_would_use_has_no_effect() -> None:
    def names(**arguments: Any) -> set[str]:
        return options.unused(CrystalGPTModule, SIZE | arguments).keys() & {
            "rank", "learn_basis", "basis_seed", "basis", "top_k",
        }  # fmt: skip

    assert names() == {"top_k"}
    assert names(basis="file") == {"top_k", "basis_seed"}
    assert names(mode="topk") == {"rank", "learn_basis", "basis_seed", "basis"}


def test_starts_from_calibrated_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    modes = random_basis(4, 4, 4, seed=9).view(2, 2, 4, 4)
    ResidualBasis((0, 1), modes, torch.ones(2, 2, 4)).save(tmp_path / "basis.safetensors")
    for learn in (False, True):
        made = CrystalGPTModule(**SIZE, rank=3, learn_basis=learn, basis="~/basis.safetensors")
        (note,) = made.begin(None)
        assert note.endswith("was made for trained weights, but none are taken; add --init_from RUN")
        assert torch.equal(made.network.state_dict()["blocks.1.attn.core.basis"], modes[1, :, :, :3])


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((1,), "layer = 0: the basis holds layers 1 only"),
        ((0, 1), "not orthonormal"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_told(layers: tuple[int, ...] | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "basis.safetensors"
    if layers is not None:
        modes = torch.eye(4).expand(len(layers), 2, 4, 4) if len(layers) == 1 else torch.zeros(2, 2, 4, 4)
        ResidualBasis(layers, modes, torch.ones(len(layers), 2, 4)).save(path)
    made = CrystalGPTModule(**SIZE, rank=3, basis=str(path))  # what is resumed or evaluated needs no file
    with pytest.raises(ConfigurationError, match=f"model.init_args.basis: .*{said}.*; leave it out"):
        made.begin(None)


def test_a_basis_of_other_weights_is_told(tmp_path: Path) -> None:
    """The directions that hold most energy are those of the weights they were made with."""
    torch.manual_seed(0)
    gpt = GPT(**SIZE)
    modes = random_basis(4, 4, 4, seed=9).view(2, 2, 4, 4)
    path = tmp_path / "basis.safetensors"
    about = {"model": weights_digest(gpt.state_dict())}
    ResidualBasis((0, 1), modes, torch.ones(2, 2, 4), fingerprints=about).save(path)
    made = CrystalGPTModule(**SIZE, rank=3, basis=str(path))
    assert made.begin(gpt.state_dict()) == []
    with torch.no_grad():
        next(gpt.parameters())[0, 0] += 1e-3
    (note,) = made.begin(gpt.state_dict())
    assert "was made for other weights than those that --init_from takes" in note
    assert CrystalGPTModule(**SIZE, mode="topk", basis=str(path)).begin(None) == []

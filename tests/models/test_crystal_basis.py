"""Bases from second moments: the singular vectors of stacked residuals, in constant memory, on any number of ranks."""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch import Tensor

from app.models.crystal import ResidualBasis, ResidualMoments, calibrate
from app.models.crystal.basis import effective_dimension
from app.models.gpt import GPT
from tests.parity import load_fixture, relative_error

PROJECTOR = 1e-5


def residuals(n: int = 400, n_heads: int = 3, d: int = 8) -> Tensor:
    """``(H, N, d)`` with a spectrum that falls, so that every mode is defined, and a mean, which stays in."""
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(n_heads, d, d, generator=draw) * 0.6 ** torch.arange(d)
    return torch.randn(n_heads, n, d, generator=draw) @ mixing.mT + 0.3


def projectors(modes: Tensor, rank: int) -> Tensor:
    return modes[..., :rank] @ modes[..., :rank].mT


def assert_is_svd(basis: ResidualBasis, stacked: Tensor) -> None:
    _, singular, right = torch.linalg.svd(stacked.double(), full_matrices=False)
    for rank in range(1, stacked.shape[-1] + 1):
        expected = projectors(right.mT, rank)
        assert relative_error(projectors(basis.modes[0].double(), rank), expected) <= PROJECTOR, rank
    energy = singular.square()
    shares = energy.cumsum(-1) / energy.sum(-1, keepdim=True)
    assert relative_error(basis.spectrum[0], shares) <= 1e-6


def test_fixture() -> None:
    fixture = load_fixture("crystal_attention").tensors
    moments = ResidualMoments()
    for part in fixture["calibration_residuals"].split(17, dim=1):
        moments.add(5, part[None])  # (1, H, T, d)
    basis = moments.basis()
    assert basis.layers == (5,)
    assert basis.n_tokens == 120
    for number, rank in enumerate((1, 3)):
        expected = fixture["calibration_projectors"][number]
        assert relative_error(projectors(basis.modes[0], rank), expected) <= PROJECTOR
    assert relative_error(basis.spectrum[0], fixture["calibration_spectrum"]) <= PROJECTOR


def test_streaming_is_the_svd_of_everything() -> None:
    stacked = residuals()
    moments = ResidualMoments()
    for part in stacked.split(37, dim=1):
        moments.add(0, part[None])
    basis = moments.basis({"model": "x"})
    assert_is_svd(basis, stacked)
    assert basis.modes.shape == (1, 3, 8, 8)
    largest = basis.modes.gather(-2, basis.modes.abs().argmax(-2, keepdim=True))
    assert (largest > 0).all()


def test_positions_of_padding_do_not_count() -> None:
    stacked = residuals()
    x = stacked.view(3, 8, 50, 8).transpose(0, 1)  # (B, H, T, d)
    counted = torch.rand(8, 50, generator=torch.Generator().manual_seed(1)) < 0.7
    moments = ResidualMoments()
    moments.add(0, x.masked_fill(~counted[:, None, :, None], float("nan")), counted)
    basis = moments.basis()
    assert basis.n_tokens == counted.sum()
    assert_is_svd(basis, x.transpose(0, 1).reshape(3, 400, 8)[:, counted.reshape(-1)])


def test_effective_dimension_counts_modes_below_the_share() -> None:
    spectrum = torch.tensor([[[0.5, 0.89, 0.9, 1.0], [0.95, 1.0, 1.0, 1.0], [0.2, 0.4, 0.6, 1.0]]])
    basis = ResidualBasis((0,), torch.eye(4).expand(1, 3, 4, 4), spectrum)
    assert basis.effective_dimension().tolist() == [[3, 1, 4]]
    assert basis.effective_dimension(0.5).tolist() == [[1, 1, 3]]


def test_effective_dimension_without_a_basis() -> None:
    x = residuals()
    moments = (x.mT @ x).double()[None]
    assert torch.equal(
        effective_dimension(moments), ResidualBasis.from_second_moments(moments).effective_dimension()
    )
    assert effective_dimension(torch.zeros(2, 3, 4, 4).double()).eq(1).all()


def test_a_head_without_residual_needs_one_mode() -> None:
    basis = ResidualBasis.from_second_moments(torch.zeros(1, 2, 4, 4))
    assert basis.spectrum.eq(1).all()
    assert basis.effective_dimension().eq(1).all()
    assert basis.modes.isfinite().all()


def test_too_little_text_is_an_error() -> None:
    moments = ResidualMoments()
    moments.add(0, torch.randn(1, 2, 7, 8))
    with pytest.raises(ValueError, match="calibration tokens = 7: must be at least the head width, 8"):
        moments.basis()
    with pytest.raises(ValueError, match="calibration tokens = 0"):
        ResidualMoments().basis()


def test_survives_its_file(tmp_path: Path) -> None:
    moments = ResidualMoments()
    moments.add(2, residuals()[None])
    basis = moments.basis({"model": "abc", "data": {"n": 3}})
    basis.save(tmp_path / "basis.safetensors")
    again = ResidualBasis.load(tmp_path / "basis.safetensors")
    assert torch.equal(again.modes, basis.modes)
    assert torch.equal(again.spectrum, basis.spectrum)
    assert (again.layers, again.n_tokens, again.fingerprints) == (
        (2,),
        400,
        {"model": "abc", "data": {"n": 3}},
    )
    assert os.listdir(tmp_path) == ["basis.safetensors"]
    (tmp_path / "other").touch()
    assert (tmp_path / "basis.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    with pytest.raises(ValueError, match="holds layers 2 only"):
        again.of_layer(1)


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors")
    for name in ("text", "absent", "."):
        with pytest.raises(ValueError, match=r"cannot be read|holds no residual basis"):
            ResidualBasis.load(tmp_path / name)


def test_a_damaged_basis_is_told(tmp_path: Path) -> None:
    modes, spectrum = torch.eye(4).expand(1, 2, 4, 4).contiguous(), torch.ones(1, 2, 4)
    path = tmp_path / "basis.safetensors"
    ResidualBasis((0,), modes, spectrum).save(path)
    whole = path.read_bytes()
    ResidualBasis.load(path)
    about: dict[str, object] = {"layers": [0], "n_tokens": 1, "fingerprints": {}}
    cases: list[tuple[dict[str, Tensor], object, str]] = [
        ({"modes": modes, "spectrum": spectrum}, [1], "holds no residual basis"),
        ({"modes": modes, "spectrum": spectrum}, {"layers": [0]}, "holds no residual basis"),
        ({"modes": modes, "spectrum": spectrum}, about | {"layers": 3}, "holds no residual basis"),
        ({"modes": modes, "spectrum": spectrum}, about | {"layers": [0, 1]}, "do not belong together"),
        ({"modes": modes[0], "spectrum": spectrum}, about, "do not belong together"),
        ({"modes": 0 * modes, "spectrum": spectrum}, about, "not orthonormal"),
        ({"modes": modes / 0, "spectrum": spectrum}, about, "not orthonormal"),
    ]
    for tensors, text, said in cases:
        save_file(tensors, path, {"residual_basis": json.dumps(text)})
        with pytest.raises(ValueError, match=said):
            ResidualBasis.load(path)
    for length in (0, 7, 60, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"holds no residual basis|cannot be read"):
            ResidualBasis.load(path)


def small_network() -> GPT:
    torch.manual_seed(0)
    return GPT(11, 16, n_layers=2, n_heads=2, d_model=12)


def test_calibration_reads_the_networks_own_residuals() -> None:
    network = small_network().train()
    idx = torch.randint(0, 11, (6, 16))
    seen: list[Tensor] = []

    def collect(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        q, k, v = given[:3]
        p = (
            (q @ k.mT / q.shape[-1] ** 0.5)
            .masked_fill(~torch.ones(16, 16).tril().bool(), float("-inf"))
            .softmax(-1)
        )
        top = v.gather(2, p.argmax(-1)[..., None].expand_as(v))
        seen.append((p @ v - top).transpose(0, 1).flatten(1, 2))

    handle = network.blocks[1].attn.core.register_forward_pre_hook(collect)
    with torch.no_grad():
        network(idx)
    handle.remove()
    before = network.blocks[1].attn.core
    basis = calibrate(network, [1], idx.split(2))
    assert network.training
    assert network.blocks[1].attn.core is before
    assert basis.layers == (1,)
    assert_is_svd(basis, seen[0])


def test_memory_does_not_grow_with_the_text() -> None:
    """Of all tensors alive between two batches, no more bytes after many batches than after a few."""
    network = small_network()
    alive: list[int] = []

    def batches(n: int) -> Iterator[Tensor]:
        for _ in range(n):
            alive.append(sum(x.nbytes for x in gc.get_objects() if type(x) is Tensor))
            yield torch.randint(0, 11, (2, 16))

    calibrate(network, [0, 1], batches(6))
    assert max(alive[2:]) == min(alive[2:])
    assert min(alive) >= 2 * 2 * 6 * 6 * 8  # the sums themselves are seen, so that a text kept would be too


def _on_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # a forked process has lost the threads of its parent
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    idx = torch.load(f"{folder}/idx.pt")
    calibrate(small_network(), [0, 1], idx[rank::2].split(3)).save(f"{folder}/{rank}.safetensors")
    # A text of one batch: the second rank has none.
    calibrate(small_network(), [0, 1], [idx][rank:]).save(f"{folder}/{rank}-alone.safetensors")
    dist.destroy_process_group()


def test_two_ranks_have_the_basis_of_the_whole_text(tmp_path: Path) -> None:
    idx = torch.randint(0, 11, (10, 16), generator=torch.Generator().manual_seed(0))
    torch.save(idx, tmp_path / "idx.pt")
    mp.start_processes(_on_a_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    whole = calibrate(small_network(), [0, 1], [idx])
    for kind in ("", "-alone"):
        parts = [ResidualBasis.load(tmp_path / f"{rank}{kind}.safetensors") for rank in (0, 1)]
        assert torch.equal(parts[0].modes, parts[1].modes)
        assert parts[0].n_tokens == parts[1].n_tokens == whole.n_tokens == 160
        assert relative_error(parts[0].spectrum, whole.spectrum) <= 1e-6
        for rank in range(1, 7):
            assert (
                relative_error(projectors(parts[0].modes, rank), projectors(whole.modes, rank)) <= PROJECTOR
            )

"""Muon: the update itself, which parameters get it, and what a gate and a resume do to it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from app import options
from app.models import LanguageModel
from app.models.gpt import GPT
from app.models.tilelli import TilelliLM
from app.training.language_model import LanguageModelModule
from app.training.optim.muon import Muon, orthogonal
from tests import tolerances
from tests.parity import relative_error


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the update


@pytest.mark.parametrize("shape", [(16, 16), (7, 33), (33, 7), (1, 5), (5, 1)])
def test_the_update_has_the_singular_vectors_and_no_singular_values(shape: tuple[int, int]) -> None:
    g = draw(*shape)
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    core = u.mT @ orthogonal(g) @ vh.mT  # diagonal where the vectors are kept
    values = core.diagonal()
    assert ((core - values.diag()).abs() < 2e-3).all()
    well_above_zero = s > 0.02 * s.norm()
    assert well_above_zero.float().mean() > 0.8
    assert ((values > 0.65) & (values < 1.25))[well_above_zero].all()


def test_no_gradient_gives_no_update() -> None:
    assert torch.equal(orthogonal(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_each_matrix_of_a_stack_stands_for_itself() -> None:
    stack = draw(3, 6, 10) * torch.tensor([1.0, 1e3, 1e-3])[:, None, None]
    whole = orthogonal(stack)
    for one, alone in zip(whole, stack, strict=True):
        assert relative_error(one, orthogonal(alone)) < tolerances.OUTPUT
    starved = stack.clone()
    starved[1] = 0  # a bank without a token
    assert torch.equal(orthogonal(starved)[1], torch.zeros(6, 10))
    assert relative_error(orthogonal(starved)[2], whole[2]) < tolerances.OUTPUT


# ---- the optimizer


def naive_steps(
    weights: list[Tensor], gradients: list[list[Tensor]], lr: float, decay: float
) -> list[Tensor]:
    """One matrix after the other, in double precision, Newton–Schulz written out."""
    weights = [w.double() for w in weights]
    buffers = [torch.zeros_like(w) for w in weights]
    for step in gradients:
        for number, g in enumerate(step):
            buffers[number] = 0.95 * buffers[number] + g.double()
            for entry in [()] if g.dim() == 2 else list(range(len(g))):
                y = g.double()[entry] + 0.95 * buffers[number][entry]
                turned = y.shape[0] > y.shape[1]
                y = y.T if turned else y
                y = y / (y.square().sum().sqrt() + 1e-7)
                for _ in range(5):
                    y = 3.4445 * y - 4.7750 * (y @ y.T) @ y + 2.0315 * (y @ y.T) @ (y @ y.T) @ y
                y = y.T if turned else y
                w = weights[number][entry]
                w.copy_((1 - lr * decay) * w - lr * 0.2 * max(w.shape) ** 0.5 * y)
    return weights


SHAPES = [(6, 9), (9, 6), (3, 6, 9), (6, 9)]


def run(
    n_steps: int, bad: tuple[int, ...] = (), start: dict[str, Any] | None = None
) -> tuple[list[Tensor], Any]:
    """Weights and optimizer after these steps, with two vectors beside the matrices; bad steps have no finite gradient."""
    weights = [nn.Parameter(draw(*shape, seed=n)) for n, shape in enumerate([*SHAPES, (5,), (7, 2)])]
    groups = [
        {"params": weights[:4], "muon": True, "weight_decay": 0.1},
        {"params": weights[4:], "muon": False, "weight_decay": 0.0},
    ]
    optimizer = Muon(groups, lr=0.02)
    first = 0
    if start is not None:
        for weight, saved in zip(weights, start["weights"], strict=True):
            weight.data.copy_(saved)
        optimizer.load_state_dict(start["optimizer"])
        first = start["step"]
    for step in range(first, n_steps):
        for n, weight in enumerate(weights):
            weight.grad = draw(*weight.shape, seed=100 * step + n)
            if step in bad:
                weight.grad[...] = float("nan")
        optimizer.found_inf = torch.tensor(float(step in bad))
        optimizer.step()
    return [weight.detach().clone() for weight in weights], optimizer


def test_equals_one_matrix_after_the_other() -> None:
    weights = [draw(*shape, seed=n) for n, shape in enumerate(SHAPES)]
    gradients = [[draw(*s, seed=100 * step + n) for n, s in enumerate(SHAPES)] for step in range(3)]
    expected = naive_steps(weights, gradients, lr=0.02, decay=0.1)
    for ours, theirs in zip(run(3)[0], expected, strict=False):
        assert relative_error(ours, theirs) < tolerances.OUTPUT


def test_the_rest_is_adamw_to_the_bit() -> None:
    rest = [nn.Parameter(draw(*shape, seed=4 + n)) for n, shape in enumerate([(5,), (7, 2)])]
    adamw = torch.optim.AdamW(rest, lr=0.02, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in range(3):
        for n, weight in enumerate(rest):
            weight.grad = draw(*weight.shape, seed=100 * step + 4 + n)
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(run(3)[0][4:], rest, strict=True))


@pytest.mark.parametrize("bad", [(0,), (2,), (0, 1, 2, 3)])
def test_a_shut_gate_leaves_weights_and_state_alone(bad: tuple[int, ...]) -> None:
    before, optimizer = run(min(bad))
    after, gated = run(max(bad) + 1, bad)
    if len(bad) == 1:
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        ours, theirs = gated.state_dict()["state"], optimizer.state_dict()["state"]
        assert all(torch.equal(ours[n][key], theirs[n][key]) for n in theirs for key in theirs[n])
    assert all(weight.isfinite().all() for weight in run(6, bad)[0])


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    weights, optimizer = run(2)
    saved = {"weights": weights, "optimizer": optimizer.state_dict(), "step": 2}
    whole, again = run(5), run(5, start=saved)
    assert all(torch.equal(a, b) for a, b in zip(whole[0], again[0], strict=True))
    ours, theirs = whole[1].state_dict(), again[1].state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert all(
        torch.equal(ours["state"][n][k], theirs["state"][n][k])
        for n in ours["state"]
        for k in ours["state"][n]
    )


def test_a_step_reads_nothing_back() -> None:
    reads: list[str] = []

    class CountReads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                reads.append(str(func))
            return func(*args, **(kwargs or {}))

    _, optimizer = run(1)
    with CountReads():
        optimizer.step()
    assert not reads


def test_the_update_is_as_large_as_adamws() -> None:
    """Root mean square 0.2 per unit of learning rate, whatever the shape."""
    for shape in [(64, 64), (64, 256), (2, 256, 64)]:
        weight = nn.Parameter(torch.zeros(shape))
        optimizer = Muon([{"params": [weight], "muon": True}], lr=1.0)
        weight.grad = draw(*shape)
        optimizer.step()
        assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15)


# ---- which parameters


def muon_names(network: LanguageModel) -> set[str]:
    module = LanguageModelModule(network, optimizer="muon")
    optimizer = module.make_optimizer()
    every = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in every}) == len(every) == len(list(network.parameters()))
    mine = {id(p) for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    return {name for name, p in network.named_parameters() if id(p) in mine}


def test_hidden_matrices_of_the_baseline() -> None:
    assert muon_names(GPT(11, 4, 2, 2, 8)) == {
        f"blocks.{i}.{name}.weight"
        for i in range(2)
        for name in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.fc", "mlp.proj")
    }


def test_hidden_matrices_of_banks_are_no_taps_and_no_head() -> None:
    assert muon_names(TilelliLM(11, d_model=8, n_layers=1, d_head=4, n_banks=2)) == {
        f"blocks.0.{name}.weight"
        for name in ("router", "sparse.query", "sparse.key", "sparse.value", "dense.up", "dense.down")
    }


def test_rates_and_decay_of_groups_are_kept() -> None:
    class TwoRates(GPT):
        def parameter_groups(self) -> list[dict[str, Any]]:
            groups = super().parameter_groups()
            groups[0]["rate"] = 0.5
            return groups

    module = LanguageModelModule(
        TwoRates(11, 4, 1, 1, 8), optimizer="muon", weight_decay=0.3, muon_momentum=0.8
    )
    groups = module.make_optimizer().param_groups
    assert [(g["muon"], g["rate"], g["weight_decay"]) for g in groups] == [
        (True, 0.5, 0.3),
        (False, 0.5, 0.3),
        (False, 1.0, 0.0),
    ]
    assert groups[0]["momentum"] == 0.8


def test_what_has_no_effect_beside_an_optimizer() -> None:
    def names(**arguments: Any) -> set[str]:
        return set(options.unused(LanguageModelModule, arguments))

    assert "muon_momentum" in names(optimizer="adamw")
    assert {"muon_momentum", "beta2"} <= names(optimizer="sgd")
    assert not {"muon_momentum", "beta2"} & names(optimizer="muon")


def test_muon_of_zeros_and_of_one_entry() -> None:
    for matrix in (
        torch.zeros(3, 5),
        torch.eye(3, 5)[:1],
        torch.full((5, 3), 1e-30),
        torch.full((1, 1), 1e18),
    ):
        assert torch.isfinite(orthogonal(matrix)).all()
    weight = nn.Parameter(torch.ones(3, 4))
    optimizer = Muon([{"params": [weight], "muon": True}], lr=0.1)
    weight.grad = torch.zeros(3, 4)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3, 4))


def test_clipping_of_nothing() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    for limit in (1.0, float("inf")):
        nn.utils.clip_grads_with_norm_([weight], limit, nn.utils.get_total_norm([weight.grad]))
        assert not weight.grad.any()

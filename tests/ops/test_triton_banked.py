"""Kernels of the operators that group tokens by bank: on a GPU where there is one, in Triton's interpreter elsewhere."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from app.models.tilelli import TilelliLM
from app.ops import Form, use_form
from app.ops.banked_ffn import banked_ffn
from app.ops.banked_sparse_attention import banked_sparse_attention
from tests import tolerances
from tests.parity import relative_error

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)

from app.ops import bank_kernels  # noqa: E402
from app.ops.banked_sparse_attention import triton as attention  # noqa: E402
from tests.support.interpreted import hold_numbers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|All-NaN):RuntimeWarning")
BANKED = {"banked_ffn": banked_ffn, "banked_sparse_attention": banked_sparse_attention}
# (B, T, D, N); with several banks the last one is chosen by no token.
SIZES = [(2, 1, 40, 3), (2, 63, 40, 1), (1, 257, 33, 3)]
LARGE = [(3, 257, 40, 3), (2, 300, 72, 4), (1, 700, 130, 8), (1, 1030, 16, 2)]


@pytest.fixture(autouse=True)
def few_programs_of_poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that nothing wrote holds NaN; the interpreter takes its time by the program."""
    if DEVICE == "cpu":
        hold_numbers(monkeypatch)
        for name, n in (("ENTRIES_BACKWARD", 512), ("KEYS_BACKWARD", 64), ("ROWS_BACKWARD", 64)):
            monkeypatch.setattr(attention, name, n)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.stress
def test_a_network_equals_its_original_form() -> None:
    """Without positions every occurrence of a character has the same score: ties everywhere."""
    torch.manual_seed(0)
    network = TilelliLM(vocab_size=11, d_model=24, n_layers=2, d_head=8, top_k=4, n_banks=3).to(DEVICE)
    idx = torch.randint(0, 11, (2, 40), device=DEVICE)
    steps = []
    for form in ("triton", "naive"):
        network.zero_grad()
        with use_form(form):
            output = network(idx, idx)
            (output.loss + output.aux_loss).backward()
        steps.append((output.loss, torch.cat([p.grad.flatten() for p in network.parameters()])))
    for found, expected, bound in zip(*steps, (tolerances.STEP_LOSS, tolerances.STEP_GRADIENT), strict=True):
        assert relative_error(found, expected) <= bound


def arguments(
    op: str, size: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, top_k: int = 8
) -> dict[str, Any]:
    B, T, D, N = size
    generator = torch.Generator().manual_seed(B * 1000 + T * 10 + N)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=generator) * std
        return drawn.to(dtype).to(DEVICE).requires_grad_()

    # One column of the banks of several pathways, as in a network.
    bank = torch.randint(0, max(1, N - 1), (B, T, 2), generator=generator).to(DEVICE)[..., 1]
    h = normal(B, T, D)
    if op == "banked_ffn":
        F = 2 * D + 1
        return {
            "h": h,
            "up": normal(N, F, D, std=D**-0.5),
            "down": normal(N, D, F, std=F**-0.5),
            "bank": bank,
        }
    d = D // 2 + 1
    shapes = {"query": (N, d, D), "key": (N, d, D), "value": (N, D, D)}
    weights = {name: normal(*shape, std=D**-0.5) for name, shape in shapes.items()}
    return {"h": h, **weights, "bank": bank, "top_k": top_k}


def computed(op: str, given: dict[str, Any], form: Form = "triton") -> dict[str, Tensor]:
    """Output and gradients."""
    leaves = {name: x for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad}
    with use_form(form):
        y = BANKED[op](**given)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y)
    return {"y": y, **dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), upstream), strict=True))}


def assert_same(op: str, given: dict[str, Any]) -> None:
    found, expected = computed(op, given), computed(op, given, "naive")
    for name, x in expected.items():
        assert found[name].dtype == x.dtype
        bound = tolerances.OUTPUT if name == "y" else tolerances.GRADIENT
        assert relative_error(found[name], x) <= bound, name


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", BANKED)
def test_kernels_equal_the_reference(op: str, size: tuple[int, int, int, int]) -> None:
    assert_same(op, arguments(op, size))


def test_what_nearly_all_queries_keep_is_added_up_by_many_at_a_time() -> None:
    assert_same("banked_sparse_attention", arguments("banked_sparse_attention", (1, 70, 10, 1), top_k=32))


@pytest.mark.stress
@pytest.mark.parametrize("size", LARGE, ids=str)
@pytest.mark.parametrize("op", BANKED)
def test_kernels_equal_the_reference_at_larger_sizes(op: str, size: tuple[int, int, int, int]) -> None:
    assert_same(op, arguments(op, size))


@pytest.mark.parametrize("op", BANKED)
def test_two_runs_are_equal_bit_for_bit_and_a_starved_bank_gets_zeros(op: str) -> None:
    given = arguments(op, (2, 40, 16, 3))
    first, second = computed(op, given), computed(op, given)
    for name, x in first.items():
        assert torch.equal(x, second[name]), name
        if name not in ("y", "h"):
            assert x[-1].eq(0).all() and x[0].ne(0).any(), name


@pytest.mark.parametrize("op", BANKED)
def test_bfloat16(op: str) -> None:
    given = arguments(op, (2, 31, 24, 3), torch.bfloat16, top_k=31)  # all positions: rounding decides nothing
    wide = {
        name: x.detach().float().requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x
        for name, x in given.items()
    }
    found, expected = computed(op, given), computed(op, wide, "naive")
    for name, x in found.items():
        assert x.dtype == torch.bfloat16
        bound = tolerances.BFLOAT16 if name == "y" else 3 * tolerances.BFLOAT16
        assert relative_error(x, expected[name]) <= bound, name


@pytest.mark.parametrize("op", BANKED)
def test_autocast(op: str) -> None:
    given = arguments(op, (2, 31, 24, 3), top_k=31)
    expected = computed(op, given, "naive")
    with torch.autocast(DEVICE, torch.bfloat16):
        found = computed(op, given)
    assert found.pop("y").dtype == torch.bfloat16
    for name, x in found.items():
        assert x.dtype == torch.float32
        assert relative_error(x, expected[name]) <= 3 * tolerances.BFLOAT16, name


@pytest.mark.parametrize("banks", [[0, 2, 0, 2, 2], [1] * 1500 + [3] * 57, list(range(4)) * 300])
def test_tokens_are_sorted_by_bank_in_their_order(banks: list[int]) -> None:
    bank = torch.tensor(banks, device=DEVICE)
    for n_banks in (4, 70):  # many banks: fewer tokens a block
        order, ends = bank_kernels.group_by_bank(bank, n_banks)
        assert order is not None
        assert torch.equal(order.long(), torch.sort(bank, stable=True).indices)
        assert ends.tolist() == [sum(b <= n for b in banks) for n in range(n_banks)]


def test_a_weight_gradient_of_several_sums() -> None:
    """More rows of a bank than one sum takes, and one bank that ends where a sum does."""
    bank = torch.tensor([2] * 256 + [0] * 600 + [3] * 3, device=DEVICE)
    y, x = (torch.randn(859, n, generator=torch.Generator().manual_seed(n)).to(DEVICE) for n in (24, 17))
    groups = bank_kernels.group_by_bank(bank, 4)
    found = bank_kernels.grouped_outer(y, x, groups, torch.float32, gather_y=True, gather_x=True)
    for n in range(4):
        assert relative_error(found[n], y[bank == n].T @ x[bank == n]) <= tolerances.OUTPUT


class TestSelection:
    def given(self, scores_of_time: Tensor, top_k: int) -> dict[str, Any]:
        """Each position has one score, whoever asks, and its own value."""
        T = scores_of_time.shape[0]
        h = torch.zeros(1, T, T + 2)
        h[0, :, 0], h[0, :, 1], h[0, :, 2:] = 1, scores_of_time, torch.eye(T)
        query, key = torch.zeros(1, 1, T + 2), torch.zeros(1, 1, T + 2)
        query[..., 0], key[..., 1] = 1, 1
        value = torch.eye(T + 2).unsqueeze(0)
        bank = torch.zeros(1, T, dtype=torch.int64)
        given = {"h": h, "query": query, "key": key, "value": value, "bank": bank}
        return {name: x.to(DEVICE) for name, x in given.items()} | {"top_k": top_k}

    @pytest.mark.parametrize(
        ("scores", "top_k"),
        [
            ("equal", 1),
            ("equal", 5),
            ("rising", 5),
            ("falling", 8),
            ("tied", 5),
            ("negative", 3),
            ("zeros", 5),
        ],
    )
    def test_keeps_what_the_reference_keeps(self, scores: str, top_k: int) -> None:
        T = 66
        time = torch.arange(T, dtype=torch.float32)
        of_time = {
            "equal": torch.full((T,), 0.3),
            "rising": time / T,
            "falling": 1 - time / T,
            "tied": (time * 7 % 5) / 5,
            "negative": -1 - (time * 7 % 11) / 11,
            "zeros": torch.where(time % 2 == 0, 0.0, -0.0),
        }[scores]
        given = self.given(of_time, top_k)
        with use_form("triton"):
            y = banked_sparse_attention(**given)[0, :, 2:]
        with use_form("naive"):
            expected = banked_sparse_attention(**given)[0, :, 2:]
        assert torch.equal(y > 0, expected > 0)
        assert relative_error(y, expected) <= tolerances.OUTPUT

    def test_does_not_see_the_future(self) -> None:
        given = arguments("banked_sparse_attention", (1, 66, 8, 2))
        for first in (65, 2):  # in a later tile, and fewer than top_k before the second
            changed = given | {"h": given["h"].detach().clone()}
            changed["h"][:, first:] = float("nan")
            with use_form("triton"):
                before, after = (banked_sparse_attention(**x).detach() for x in (given, changed))
            assert torch.equal(before[:, :first], after[:, :first])
            assert after[:, first:].isnan().any()

    def test_more_positions_than_a_list_holds(self) -> None:
        assert_same("banked_sparse_attention", arguments("banked_sparse_attention", (1, 41, 8, 2), top_k=40))

"""A router over the banks of five pathways, for measurements and checks."""

from app.ops.bank_router import bank_router
from app.ops.case import Arguments, Case, Draw, Size

N_PATHWAYS = 5


def _arguments(size: Size, draw: Draw) -> Arguments:
    return {"logits": draw.activation(size.B, size.T, N_PATHWAYS * size.N), "n_banks": size.N}


def _by_bank(size: Size, draw: Draw) -> Arguments:
    return _arguments(size, draw) | {"by_bank": True}


def _flops(size: Size) -> int:
    return 8 * size.B * size.T * N_PATHWAYS * size.N


CASES = {
    "bank_router": Case(bank_router, _arguments, _flops, "BTN"),
    "bank_router.by_bank": Case(bank_router, _by_bank, _flops, "BTN"),
}

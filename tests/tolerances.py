"""How far two computations of one thing may be apart, as ‖a − b‖ / ‖b‖; written once, for every test."""

from app.bench.parity import BFLOAT16, GRADIENT, OUTPUT

__all__ = ["BFLOAT16", "GRADIENT", "OUTPUT", "STEP_GRADIENT", "STEP_LOSS"]

# One step from the same state by two forms of the same network.
STEP_LOSS = 1e-6
STEP_GRADIENT = 1e-5

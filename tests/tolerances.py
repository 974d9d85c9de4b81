"""How far two computations of one thing may be apart, as ‖a − b‖ / ‖b‖; written once, for every test."""

# fp32, another order of the same operations.
OUTPUT = 1e-5
GRADIENT = 1e-4
# One step from the same state by two forms of the same network.
STEP_LOSS = 1e-6
STEP_GRADIENT = 1e-5
# bf16 keeps 8 bits: about three digits.
BFLOAT16 = 1e-2

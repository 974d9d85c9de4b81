"""What must be settled before the first test module is imported."""

import os

import torch

# Triton chooses its interpreter when it is imported, and Lightning imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

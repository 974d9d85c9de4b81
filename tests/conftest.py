"""What must be settled before the first test module is imported."""

import os
import resource

import torch

# Triton chooses its interpreter when it is imported, and Lightning imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Hundreds of loggers and stores of one process are closed when they are collected, and some systems allow 1,024.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_wanted = 8192 if _hard == resource.RLIM_INFINITY else min(8192, _hard)
if _soft < _wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_wanted, _hard))

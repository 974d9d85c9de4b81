"""What can be taken away from a network; in a file that a command line can read before PyTorch is imported."""

from typing import Literal, get_args

Kind = Literal["pathway", "bank", "route", "attention", "head", "mlp", "block", "precision", "activation"]
KINDS: tuple[str, ...] = get_args(Kind)
How = Literal["zero", "mean", "shuffle"]
HOWS: tuple[str, ...] = get_args(How)

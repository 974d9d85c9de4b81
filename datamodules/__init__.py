"""Data sets as LightningDataModules, and the text, token and window code below them.

Everything but the data modules themselves imports without lightning: a trained network and its tokenizer
are loaded with ``datamodules.tokenizers`` alone. The data modules are therefore exported lazily.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.char import CharDataModule
    from datamodules.hf_text import HFTextDataModule
    from datamodules.local_text import TextDataModule
    from datamodules.synthetic_data import SyntheticDataModule
    from datamodules.wikitext import WikiTextDataModule

__all__ = [
    "CharDataModule",
    "HFTextDataModule",
    "SyntheticDataModule",
    "TextDataModule",
    "WikiTextDataModule",
]

_MODULES = {
    "CharDataModule": "char",
    "HFTextDataModule": "hf_text",
    "SyntheticDataModule": "synthetic_data",
    "TextDataModule": "local_text",
    "WikiTextDataModule": "wikitext",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"datamodules.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

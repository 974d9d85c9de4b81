"""Data sets as LightningDataModules, and the text, token and window code below them.

Everything but the data modules themselves imports without lightning: a trained network and its tokenizer
are loaded with ``datamodules.tokenizers`` alone. The data modules are therefore exported lazily.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.char import CharDataModule

__all__ = ["CharDataModule"]


def __getattr__(name: str) -> Any:
    if name == "CharDataModule":
        from datamodules.char import CharDataModule

        return CharDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""archlab: language-model architectures trained, watched and compared on one footing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.loading import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """``app.load`` is imported when asked for: ``app --help`` needs no torch."""
    if name == "load":
        from app.loading import load

        return load
    raise AttributeError(f"module 'app' has no attribute {name!r}")

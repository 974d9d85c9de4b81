"""The one look of all figures, whatever a machine, its user or other code of the process has set."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: colours that stay apart in light, in dark and for colour-blind readers (Okabe & Ito 2008)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

#: inches; a picture of this width can be read on a phone, where it shrinks to half
NARROW = 4.8

SETTINGS: dict[str, Any] = {
    "figure.figsize": (7.0, 4.2),
    "figure.dpi": 130,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "text.parse_math": False,  # a name may have a `$`: no text of ours is a formula
}

#: settings of the library that say nothing about a figure
OF_THE_PROCESS = ("backend", "backend_fallback", "interactive", "toolbar")


@contextmanager
def _look(**own: Any) -> Iterator[None]:
    """The library's defaults, these settings and nothing of a ``matplotlibrc``, for a ``with`` block."""
    import matplotlib

    defaults = matplotlib.rcParamsDefault.items()
    settings: Any = {name: value for name, value in defaults if name not in OF_THE_PROCESS} | SETTINGS | own
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A box stands for a letter that the font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _empty(**options: Any) -> Any:
    """A figure that is drawn in memory, is known to nobody else and goes with its last reference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(**options)
    FigureCanvasAgg(drawn)
    return drawn


@contextmanager
def canvas(width: float, height: float) -> Iterator[Any]:
    """An empty figure of this size in inches, for axes that are placed by hand: four times as fast as a layout."""
    own = {"figure.constrained_layout.use": False, "axes.grid": False, "figure.dpi": 110}
    with _look(**own):
        yield _empty(figsize=(width, height))


@contextmanager
def figure(figsize: tuple[float, float] | None = None, **options: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes in the common look.

    Args:
        figsize: width and height in inches; None takes those of the look.
        options: of the axes, such as ``ncols``.
    """
    from cycler import cycler

    with _look(**{"axes.prop_cycle": cycler(color=COLOURS)}):
        drawn = _empty(figsize=figsize)
        yield drawn, drawn.subplots(**options)


def save(drawn: Any, target: Any, text: Any = None) -> None:
    """Writes a figure as PNG.

    Args:
        drawn: the figure, inside of its ``with`` block.
        target: a path, or a file to write into.
        text: what the file says beside the picture, see :func:`app.analysis.figure_numbers.chunk`.
    """
    drawn.savefig(target, format="png", pil_kwargs={} if text is None else {"pnginfo": text})

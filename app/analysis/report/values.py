"""Names and values of a report as a reader wants them: short, of bounded length, whole words kept."""

import re
from collections.abc import Mapping
from pathlib import Path

from app.analysis.comparison import GENERATED, Group, Run
from app.analysis.html import LONG_WORD, breakable

MAX_CELL = 400
_HASH = re.compile(r"[0-9a-f]{40,}")
_DOTTED = re.compile(r"[\w./-]+")


def cut(value: object, limit: int = MAX_CELL) -> str:
    """A value as text of bounded length."""
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def cell(value: object) -> str:
    """A setting's value: – without one, a hash by its beginning, a path and a class where a line may break."""
    if value is None:
        return "–"
    text = cut(value)
    if _HASH.fullmatch(text):
        return f"{text[:12]}…"
    is_broken = _DOTTED.fullmatch(text) and max(map(len, re.split(r"[./]", text))) <= LONG_WORD
    return breakable(text) if is_broken else text


def model_of(run: Run) -> str:
    """Name of the architecture, such as ``Tilelli``; empty where the configuration does not say."""
    return str(run.configuration.get("model.class_path", "")).rpartition(".")[2].removesuffix("Module")


def name_of(run: Run) -> str:
    """A run's own name: its directory, or the experiment's where the program has named the directory."""
    path = Path(run.path).absolute()
    return path.parent.name if GENERATED.fullmatch(path.name) else path.name


def setup_of(run: Run) -> str:
    """What was trained, on what, where, in one line; what is not known is left out."""
    text = cut(run.text)
    tokens = _counted(run.context, "data.train_tokens", "{:,} tokens")
    window = _counted(run.configuration, "data.init_args.block_size", " in windows of {:,} tokens")
    per_step = _counted(run.configuration, "data.init_args.batch_size", ", {:,} windows per step")
    parts = [
        _counted(run.summary, "parameters", "{:,} parameters"),
        f"trained on {text}{f' ({tokens})' if tokens else ''}{window}{per_step}" if text else "",
        str(run.context.get("launch.device") or ""),
        f"seed {run.seed}" if run.seed is not None else "",
    ]
    return "; ".join(filter(None, parts))


def short_names(groups: list[Group]) -> dict[str, str]:
    """Path of a run to its group's letter, with the seed where the group has several."""
    return {
        run.path: f"{group.letter}, seed {run.seed}" if len(group.runs) > 1 else group.letter
        for group in groups
        for run in [*group.runs, *group.repeats]
    }


def _counted(values: Mapping[str, object], key: str, sentence: str) -> str:
    number = values.get(key)
    return sentence.format(number) if isinstance(number, int) else ""

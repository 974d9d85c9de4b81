"""The table of paths and forms that are known to compute what they have to, by PyTorch version and family of GPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from app.run.atomic import write_json
from app.run.bounded import read_json
from app.run.errors import ConfigurationError

#: import paths of networks and operators by PyTorch version, family of GPU, and path or form; behind the path of an
#: operator a space and a digest of its source
Table = dict[str, dict[str, dict[str, list[str]]]]


def torch_version() -> str:
    """The release, without what it was built for: ``2.11.0``."""
    return str(torch.__version__).partition("+")[0]


def family(device: torch.device) -> str:
    """What GPUs of one compute capability have in common, ``sm_90``; the kind of any other device."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def record(file: Path, device: torch.device, outcomes: Mapping[str, Mapping[str, bool]]) -> Table:
    """Notes in a table which paths passed here; what others have noted of other versions and GPUs stays.

    Args:
        file: the table; made where it is missing.
        device: where they were checked.
        outcomes: whether a network or an operator passed, by path or form; one that did not is taken out, and so is
            what passed of another source.

    Raises:
        ConfigurationError: the file holds no such table.
    """
    table = read(file)
    here = table.setdefault(torch_version(), {}).setdefault(family(device), {})
    for path, subjects in outcomes.items():
        names = {_name(subject) for subject in subjects}
        known = {subject for subject in here.get(path, ()) if _name(subject) not in names}
        here[path] = sorted(known | {subject for subject, passed in subjects.items() if passed})
    write_json(file, table)
    return table


def read(file: Path) -> Table:
    """The table in a file; an empty one where there is none.

    Raises:
        ConfigurationError: the file holds no such table.
    """
    if not file.exists():
        return {}
    try:
        table: Table = read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file}: cannot be read ({error}); name another file") from error
    if not _is_table(table):
        raise ConfigurationError(f"{file}: is no table of paths that passed; name another file")
    return table


def _name(subject: str) -> str:
    return subject.partition(" ")[0]


def _is_table(value: Any, depth: int = 3) -> bool:
    if depth == 0:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    return isinstance(value, dict) and all(_is_table(entry, depth - 1) for entry in value.values())

"""Finished parts of a long computation, kept over a kill."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.run.atomic import write_json
from app.run.bounded import read_json
from app.run.strict_json import to_json


class PartialResults:
    """Results by name in one JSON file, which is replaced whole after every part.

    Results that were made with other settings are dropped and their file removed: they belong to another
    computation, which must not find them again beside what this one leaves.

    Args:
        path: the file; it need not exist.
        settings: plain values that every result depends on.
        confirm: called before anything is written; what it raises leaves the file as it is.

    Attributes:
        dropped: whether there were results with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], confirm: Callable[[], object] = lambda: None):
        self.path = path
        self.confirm = confirm
        self._settings = json.loads(to_json(settings))  # as they come back from the file
        self._results: dict[str, Any] = {}
        self.dropped = False
        try:
            found = read_json(path)
            self.dropped = found["settings"] != self._settings
            self._results = {} if self.dropped else dict(found["results"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # missing, or not ours: nothing has been done yet
        if self.dropped:
            path.unlink(missing_ok=True)

    def __contains__(self, name: str) -> bool:
        return name in self._results

    def __getitem__(self, name: str) -> Any:
        return self._results[name]

    def __len__(self) -> int:
        return len(self._results)

    def keep(self, name: str, result: Any) -> None:
        """Keeps a result of plain values, durably.

        Raises:
            StorageError: when it cannot be written.
        """
        self.confirm()
        self._results[name] = result
        write_json(self.path, {"settings": self._settings, "results": self._results})

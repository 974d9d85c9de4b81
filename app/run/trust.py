"""Import prefixes that a user has trusted for a run, remembered where the run was made.

A file must not trust itself: whoever sends a run folder could name code beside it. So what ``--trust_imports`` said is
kept with a seal that only this machine makes, for this folder: a digest of the machine's identity, of the folder's path
and of its number in the file system. A folder that was copied or sent has to be trusted anew.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.run import imports
from app.run.directory import RunDirectory
from app.run.manifest import launches_of
from app.run.strict_json import to_json

#: the identity of a machine, which is nobody else's to know; in a container without one, that of its host until it is
#: started again
_IDENTITIES = ("/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/random/boot_id")


def sealed(run: RunDirectory, prefixes: Sequence[str]) -> dict[str, Any]:
    """What ``run.json`` keeps of the prefixes that a launch trusts, and of the folder where they are found."""
    folder = imports.folder_of_trusted()
    return {"prefixes": [*prefixes], "folder": folder, "seal": _seal(run, prefixes, folder)}


def trusted_for(run: RunDirectory, given: Sequence[str]) -> list[str]:
    """The prefixes that a command trusts: those that it was given, else those that the run remembers."""
    if given:
        return [*given]
    launches = launches_of(run)
    kept = launches[-1].get("trust_imports") if launches else None
    if not isinstance(kept, dict):
        return []
    prefixes, folder = kept.get("prefixes"), kept.get("folder")
    if not (
        isinstance(prefixes, list) and isinstance(folder, str) and all(isinstance(p, str) for p in prefixes)
    ):
        return []
    if not (seal := _seal(run, prefixes, folder)) or kept.get("seal") != seal:
        return []
    # Found where they were trusted: a file of that name may lie in the folder that this command was called in.
    imports.find_trusted_in(folder)
    return prefixes


def _content(file: str) -> str:
    with contextlib.suppress(OSError):
        return Path(file).read_text().strip()
    return ""


def _seal(run: RunDirectory, prefixes: Sequence[str], folder: str) -> str:
    path = Path(run.path).resolve()
    try:
        status = os.stat(path)
    except OSError:
        return ""
    identity = next(filter(None, map(_content, _IDENTITIES)), None)
    if identity is None:
        return ""
    about = [
        identity,
        str(path),
        status.st_dev,
        status.st_ino,
        os.getuid(),
        [*prefixes],
        folder,
    ]
    return hashlib.sha256(to_json(about).encode()).hexdigest()

"""What a launch that came to no checkpoint leaves in its directory, told apart from what is somebody else's."""

import contextlib
import os
import re
from pathlib import Path

from app.run.atomic import is_temporary
from app.run.storage import writing

#: what training leaves, and what is made of it: worth nothing without the checkpoint that it leads to
_TRAINED = re.compile(
    r"metrics\.csv|(details|health|samples)\.jsonl|(summary|verified)\.json|events\.out\.tfevents\..*|report\.html|fit-profile.*"
)
#: who was launched with what, launch by launch
_RECORDS = re.compile(
    r"config(-\d+)?\.yaml|run\.json|status\.json|tokenizer\.json|source(-\d+)?\.diff|ablate|crystallize|routing|loggers"
)
#: made before a launch is; and what file systems put into any folder
_FOLDERS = re.compile(r"checkpoints|figures|lock|lost\+found|\.nfs.*")


def foreign(directory: Path) -> list[str]:
    """Names of what no launch has left here; in a directory without a word of one, all that is more than folders.

    A file that this process prints into may lie here all the same.
    """
    was_launched = (directory / "status.json").exists() or (directory / "run.json").exists()
    known = (_FOLDERS, _TRAINED, _RECORDS) if was_launched else (_FOLDERS,)
    with writing(directory), contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not any(pattern.fullmatch(entry.name) for pattern in known)
            and not is_temporary(entry.name)
            and not _is_printed_to(entry)
        )
    return []


def clear(directory: Path, with_records: bool = False) -> None:
    """Removes what training has left, so that nothing of it mixes with another start.

    To be called by the holder of the lock, where there is no checkpoint.

    Args:
        directory: of the run.
        with_records: whether the records of launches go too, because no run was begun.

    Raises:
        StorageError: something cannot be removed.
    """
    with writing(directory):
        for entry in list(os.scandir(directory)):
            is_left = _TRAINED.fullmatch(entry.name) or (with_records and _RECORDS.fullmatch(entry.name))
            if is_left and not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
        for picture in (directory / "figures").glob("*.png"):
            picture.unlink()


def _is_printed_to(entry: "os.DirEntry[str]") -> bool:
    """Whether standard output or error goes into this file, as in ``app fit … > DIR/log``."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), entry.stat()):
                return True
    return False

"""Paths that a person types: ``~`` is a home folder everywhere, and what can be no path is refused in words.

Shells expand ``~`` at the start of a word only, so ``--run_dir=~/x``, a quoted ``'~/x'`` and every path in a YAML file
arrive as they were typed.
"""

import errno
import os
import stat
import unicodedata
from pathlib import Path

from app.run.errors import ConfigurationError

MAX_NAME_BYTES = 255  # of Linux and macOS: one name
MAX_PATH_BYTES = 4095  # of Linux: all of them with their slashes, without the NUL at the end
#: longest path of a file inside of a folder that is made, such as ``checkpoints/.resume-000120.ckpt.sha256.12345.tmp``
INSIDE_BYTES = 128


class TypedPath:
    """Metadata of an option's type: a text that names a file or folder."""

    def demand(self, value: str) -> str:
        """What is wrong with it; empty where nothing is."""
        return (path_problem(value) or "").removeprefix(f"{_shown(value)}: ")


def typed_path(text: str, option: str = "") -> str:
    """The path that was meant: ``~`` and ``~user`` expanded, everything else as it was typed.

    Args:
        text: as typed; words that are no path, such as ``auto``, pass.
        option: what it was given to, for the message.

    Raises:
        ConfigurationError: no such user, or what no file system can name.
    """
    problem = path_problem(text)
    if problem is not None:
        raise ConfigurationError(f"{option} {problem}".strip())
    return os.path.expanduser(text)


def path_problem(text: str) -> str | None:
    """What speaks against a text as a path, beginning with that text; None where nothing does."""
    said = _shown(text)
    if "\0" in text:
        return f"{said}: holds a NUL character, which no path can; write it without"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{said}: is not UTF-8, which every file of a run is written in; rename the file or folder"
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0].removeprefix("~")
        missing = f"there is no user {user!r}" if user else "the home folder is not known"
        return f"{said}: {missing}; write the path out, or ./{_shown(expanded)} for a folder of that name"
    return _length_problem(expanded, said)


def _length_problem(path: str, said: str, n_inside: int = 0) -> str | None:
    for name in path.split("/"):
        if (n := len(os.fsencode(name))) > MAX_NAME_BYTES:
            return f"{said}: a name of {n} bytes, and a name has at most {MAX_NAME_BYTES}; shorten it"
    limit = MAX_PATH_BYTES - n_inside
    if (n := len(os.fsencode(os.path.abspath(path)))) > limit:
        return f"{said}: a path of {n} bytes, and there may be at most {limit}; shorten it, or use a folder further up"
    return None


def require_folder(path: str | os.PathLike[str], option: str) -> None:
    """Refuses what cannot become, or is not, a folder; nothing is made.

    Args:
        path: with ``~`` expanded.
        option: what it was given to, for the message.

    Raises:
        ConfigurationError: too long, of control characters, a file, below a file, or a link that leads nowhere.
    """
    text = os.fspath(path)
    said = _shown(text)
    problem = path_problem(text) or _length_problem(text, said, INSIDE_BYTES)
    if problem is None and any(unicodedata.category(character) == "Cc" for character in text):
        problem = f"{said}: holds a control character, such as a line end or a tab; write it without"
    if problem is None and "://" in text:
        problem = f"{said}: is an address; name a folder of this machine"
    if problem is not None:
        raise ConfigurationError(f"{option} {problem}".strip())
    for place in (Path(text), *Path(text).parents):
        try:
            found = os.stat(place)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP) and place.is_symlink():
                where = "is" if place == Path(text) else f"{place} is"
                raise ConfigurationError(
                    f"{option} {said}: {where} a link to {os.readlink(place)}, which is not there; make that folder, "
                    "remove the link, or name another folder".strip()
                ) from None
            if error.errno == errno.ENAMETOOLONG:
                raise ConfigurationError(
                    f"{option} {said}: a name that is too long for its file system; shorten it".strip()
                ) from None
            continue
        if not stat.S_ISDIR(found.st_mode):
            where = "is a file" if place == Path(text) else f"{place} is a file, and nothing can lie below it"
            raise ConfigurationError(f"{option} {said}: {where}; name a directory".strip())
        return


def require_own_folder(path: str | os.PathLike[str], option: str) -> None:
    """Refuses folders that belong to everything else: the root, the home folder, the current one and those above it.

    Raises:
        ConfigurationError: one of these; see also :func:`require_folder`.
    """
    require_folder(path, option)
    place = Path(os.path.realpath(path))
    here = Path(os.path.realpath(os.curdir))
    if place == place.parent:
        what = "is the root of the file system"
    elif place == Path(os.path.realpath(os.path.expanduser("~"))):
        what = "is the home folder"
    elif place == here or place in here.parents:
        what = "is the current folder" if place == here else "is above the current folder"
    else:
        return
    raise ConfigurationError(
        f"{option} {os.fspath(path)}: {what}, and a run has a folder of its own; name a new one, such as "
        f"{option} runs/first".strip()
    )


def _shown(text: str) -> str:
    """A path for a message on one line: short, and with nothing that a terminal would act on."""
    short = text if len(text) <= 100 else f"{text[:60]}…{text[-20:]}"
    return short if short.isprintable() else ascii(short)

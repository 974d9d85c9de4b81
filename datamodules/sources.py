"""Where a text comes from: files, the standard library of the running Python, or one downloaded corpus."""

import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from app.run.errors import DataError
from app.run.paths import typed_path
from datamodules.download import Download
from datamodules.text import read_ascii, read_text

SourceName = Literal["stdlib", "stdlib_full", "tinyshakespeare"]
SOURCE_NAMES: tuple[str, ...] = get_args(SourceName)

# Files of a folder given as `path`; a single file may have any name.
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py", ".tokens", ".raw")

_TEST_FOLDERS = {"test", "tests", "idle_test"}

TINYSHAKESPEARE = Download(
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    file_name="tinyshakespeare.txt",
    n_bytes=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    otherwise="--data.init_args.source stdlib",
)


@dataclass(frozen=True)
class TextSource:
    """Files that make up one text, in order.

    Attributes:
        name: ``path`` or the built-in name, for the fingerprint.
        label: for messages: the path, or the built-in name.
        files: at least one.
        read: yields the text of one file in pieces.
        details: plain values that belong into the fingerprint.
        joint: stands between one file and the next.
        license: of the text, where it is known.
    """

    name: str
    label: str
    files: tuple[Path, ...]
    read: Callable[[Path], Iterator[str]]
    details: dict[str, str] = field(default_factory=dict)
    joint: str = "\n"
    license: str | None = None

    @property
    def n_bytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self.files)

    def pieces(self) -> Iterator[str]:
        """Yields the text in pieces that fit in memory; may be called again for another pass.

        Raises:
            DataError: a file that is not readable text.
        """
        for number, path in enumerate(self.files):
            if number:
                yield self.joint
            yield from self.read(path)


def open_source(source: str | None, data_dir: str) -> TextSource:
    """A built-in text; downloads it if it has to be.

    Args:
        source: its name; None means ``stdlib``.
        data_dir: where downloaded files are kept.

    Raises:
        DataError: the text does not exist or cannot be downloaded.
    """
    if source == "tinyshakespeare":
        file = TINYSHAKESPEARE.fetch(Path(typed_path(data_dir)))
        return TextSource(source, f"source {source}", (file,), read_text, license="public domain")
    return stdlib_source(full=source == "stdlib_full")


def stdlib_source(full: bool) -> TextSource:
    """Source code of the running Python's standard library, ASCII part.

    Only modules that Python itself lists as standard (``sys.stdlib_module_names``) count, so that neither
    installed packages nor what a distributor or a build left in the same folder change the text: two
    machines with the same unpatched Python have the same text.

    Args:
        full: every module of every package but the tests, instead of the top-level ``*.py`` files only.

    Raises:
        DataError: this Python came without the source of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    name = "stdlib_full" if full else "stdlib"
    found = [file for file in root.glob("*.py") if file.stem in sys.stdlib_module_names]
    if full:
        # Package by package: a walk over everything would also visit the installed packages.
        packages = [folder for folder in root.glob("*/") if folder.name in sys.stdlib_module_names]
        found += [file for folder in packages for file in folder.rglob("*.py")]
    relative = sorted(file.relative_to(root).as_posix() for file in found)
    chosen = tuple(root / file for file in relative if not _TEST_FOLDERS & set(file.split("/")[:-1]))
    if not chosen:
        raise DataError(
            f"source: {name} found no Python source in {root}; this Python was installed without it. "
            "Set `path` to a text file instead."
        )
    details = {"python": platform.python_version()}
    return TextSource(name, f"source {name}", chosen, read_ascii, details, license="PSF-2.0")

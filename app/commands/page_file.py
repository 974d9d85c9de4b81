"""Where a command writes its page."""

from pathlib import Path

from app.run.errors import ConfigurationError


def page_file(output: str, name: str, option: str = "--output") -> Path:
    """The HTML file that an option names: itself, or ``name`` in a folder.

    Args:
        output: a file that ends in ``.html`` or ``.htm``, or a folder, which need not exist.
        name: of the file in a folder.
        option: for the message.

    Raises:
        ConfigurationError: another kind of file.
    """
    path = Path(output)
    if path.suffix.lower() in (".html", ".htm") and not path.is_dir():
        return path
    if path.is_file() or (path.suffix and not path.is_dir()):
        raise ConfigurationError(f"{option} {path}: must be a folder, or a file that ends in .html")
    return path / name

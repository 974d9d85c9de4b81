"""``app new``: a working example of one's own, in the current folder, outside of this tree."""

import argparse
import ast
import builtins
import importlib.util
import keyword
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from app.commands.parsing import CommandParser
from app.run.configuration import nearest
from app.run.errors import ConfigurationError, ExitCode, StorageError
from app.run.storage import writing

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
MAX_NAME = 60


class Kind(NamedTuple):
    """What can be begun.

    Attributes:
        example: the class, or function, in the template, whose name is replaced.
        command: trains with it.
    """

    example: str
    command: str


KINDS = {
    "architecture": Kind("GRULM", "app fit {module}.yaml --trust_imports {module}"),
    "callback": Kind(
        "WeightNorm", "app fit tilelli_banks4 --trainer.callbacks+={module}.{name} --trust_imports {module}"
    ),
    "data": Kind("AdditionText", "app fit gpt_char --data {module}.{name} --trust_imports {module}"),
    "task": Kind("reversal", "app fit gpt_task --data.task {module}.{name} --trust_imports {module}"),
}


def run(name: str, words: list[str]) -> int:
    """Writes the files of an example and says what to do with them.

    Args:
        name: ``new``.
        words: the rest of the command line.

    Raises:
        ConfigurationError: no name for a class, one that is taken, or files that are already there.
        StorageError: no room for the files.
    """
    options = command_parser().parse_args(words)
    if options.kind not in KINDS:
        meant = nearest(options.kind, KINDS)
        hint = f"did you mean {meant!r}?" if meant else f"known: {', '.join(KINDS)}"
        raise ConfigurationError(f"app new: there is no kind {options.kind!r}; {hint}")
    kind = KINDS[options.kind]
    title = class_name(options.name)
    module = module_name(title)
    if kind.example.islower():  # a function
        title = module
    files = _filled(kind, title, module)
    if problems := list(_problems(options.name, title, module, kind, files)):
        raise ConfigurationError(problems)
    _write(files)
    for file in files:
        print(f"wrote    {file}")
    print(f"next     python -m pytest test_{module}.py")
    print(f"         {kind.command.format(name=title, module=module)}")
    return int(ExitCode.DONE)


def class_name(name: str) -> str:
    """``my_net`` → ``MyNet``; a name that begins with a capital stays as it is."""
    return name if name[:1].isupper() else "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def module_name(title: str) -> str:
    """``MyNet`` → ``my_net``, ``GRULM`` → ``grulm``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", title).lower()


def _filled(kind: Kind, title: str, module: str) -> dict[Path, str]:
    """The files of an example, in which its name is another."""
    example = module_name(kind.example)
    filled = {}
    for file in (f"{example}.py", f"{example}.yaml", f"test_{example}.py"):
        if (TEMPLATES / file).is_file():
            text = (TEMPLATES / file).read_text(encoding="utf-8")
            text = re.sub(rf"\b{kind.example}\b", title, re.sub(rf"\b{example}\b", module, text))
            filled[Path(file.replace(example, module))] = text
    return filled


def _problems(name: str, title: str, module: str, kind: Kind, files: dict[Path, str]) -> Iterator[str]:
    said = f"app new: {name!r}"
    if not (title.isidentifier() and title.isascii()) or title.startswith("_") or len(title) > MAX_NAME:
        what = "a function" if kind.example.islower() else "a class"
        yield f"{said} is no name for {what}; write up to {MAX_NAME} letters and digits, such as {kind.example}"
        return
    if title in _taken(kind) or keyword.iskeyword(title) or keyword.iskeyword(module):
        yield f"{said} has a meaning in the example itself; choose another name"
    there = [file for file in files if file.exists() or file.is_symlink()]
    if there:
        yield f"{', '.join(map(str, there))}: already there, and nothing is overwritten; choose another name or folder"
    elif _is_importable(module):
        yield f"{said}: {module}.py would hide the installed module {module}; choose another name"


def _taken(kind: Kind) -> set[str]:
    """Names that the example uses for something else."""
    tree = ast.parse((TEMPLATES / f"{module_name(kind.example)}.py").read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return imported | {*dir(builtins)}


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # of a module without a specification, such as the main one
        return True


def _write(files: dict[Path, str]) -> None:
    written: list[Path] = []
    try:
        for path, text in files.items():
            with writing(path), path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except StorageError:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "new",
        description="Writes a working example of your own, with its test, into the current folder: a network with a "
        "configuration that trains it, a callback that logs a value, a data set, or a synthetic task.",
    )
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "name",
        metavar="NAME",
        help="of the class, such as GRULM or MyNet, or of the task; the file is named after it",
    )
    return parser

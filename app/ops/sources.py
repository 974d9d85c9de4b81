"""What tells a source from one that computes something else: a digest of its code, without comments and layout."""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def digest(*modules: str) -> str:
    """16 hexadecimal digits, which change with the code of these modules and of those beside them that they import.

    Docstrings, comments and layout have no part in them, nor has the version of Python.

    Args:
        modules: import paths of forms of operators, ``app.ops.banked_ffn.triton``. None is imported; one that is not
            there has no code.
    """
    found: dict[str, str] = {}
    missing = [*modules]
    while missing:
        module = missing.pop()
        if module not in found:
            found[module], imported = _code(module)
            missing += imported
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


@functools.cache
def _code(module: str) -> tuple[str, list[str]]:
    """What a module computes, in words, and the modules of the same root that it imports."""
    file = _file(module)
    words: list[str] = []
    imported: list[ast.Import | ast.ImportFrom] = []
    _spell(ast.parse(file.read_bytes() if file else b""), words, imported)
    root = f"{module.partition('.')[0]}."
    return " ".join(words), [name for node in imported for name in _modules(node, root)]


def _modules(node: ast.Import | ast.ImportFrom, root: str) -> Iterator[str]:
    for alias in node.names:
        if isinstance(node, ast.Import):
            name = alias.name
        else:
            inner = f"{node.module}.{alias.name}"
            name = inner if inner.startswith(root) and _file(inner) else str(node.module)
        if name.startswith(root):
            yield name


def _file(module: str) -> Path | None:
    root, *names = module.split(".")
    spec = importlib.util.find_spec(root)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, *names)
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def _spell(node: Any, words: list[str], imported: list[ast.Import | ast.ImportFrom]) -> None:
    """Adds the words of a part of a tree; empty fields have none: versions of Python differ in which there are."""
    if isinstance(node, ast.AST):
        words.append(type(node).__name__)
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported.append(node)
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty texts
                value = [part for part in node.values if getattr(part, "value", None) != ""]
            elif name == "body" and isinstance(value, list) and value and _is_text(value[0]):
                value = value[1:]
            if value is not None and value != []:
                words.append(name)
                _spell(value, words, imported)
        words.append(";")
    elif isinstance(node, list):
        words.append("[")
        for each in node:
            _spell(each, words, imported)
        words.append("]")
    else:
        words.append(repr(node))


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )

"""Which split of a data set a file belongs to, by the words of its name.

Words are what digits, white space, punctuation and capitals leave: ``train-00000-of-00002.parquet``, ``train (1).txt``,
``TrainSet.txt`` and ``train1.txt`` all hold the word ``train``. A part of a longer word is none: ``contest``,
``latest`` and ``constrained`` name no split. What is nearly such a word, or names two splits, says that its author
meant something which cannot be known here; it is refused, because a guess would train on text that was held out.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import PurePath

SPLITS = ("train", "val", "test")
#: for people
NAMES = {"train": "training", "val": "validation", "test": "test"}
#: what people call each split; plurals and what :data:`_NOUNS` makes of them (trainset, test_data) count as well
WORDS = {
    "train": ("train", "training", "trn"),
    "val": (
        *("val", "valid", "validation", "dev", "devel", "development"),
        *("eval", "evaluation", "holdout", "heldout"),
    ),
    "test": ("test", "testing", "tst"),
}
#: these mean the validation split to some and the test split to others: the first only where nothing else is one
EITHER_WAY = frozenset({"eval", "evaluation", "holdout", "heldout"})
_SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}
_NOUNS = ("set", "data", "split", "text", "corpus", "file", "part", "shard")
_VERBS = {"validate": "validation", "evaluate": "evaluation"}
#: words of their own that lie a slip of the keyboard away from one above
_ORDINARY = """
best dest fest gest jest lest nest pest rest text tent vest west zest teat tess testy testo testi brain drain grain rain
strain trail trait twain terrain tran raining draining straining trailing resting nesting besting jesting tasting
texting vesting tenting oval evil veal evan level revel bevel devil vapid valuation variation devaluation revaluation
revalidation invalidation evolution evacuation elevation salivation validator evaluator developmental redevelopment
envelopment foldout
"""
_ORDINARY_WORDS = frozenset(_ORDINARY.split())
_LONG = 10  # letters of a word in which two slips still leave no doubt


class UnclearName(ValueError):
    """A name that nearly tells a split, or tells two; the message says which part of it and why."""


def split_of(relative: PurePath) -> str | None:
    """The split that a file belongs to by its name and those of the folders above it; None for none.

    Raises:
        UnclearName: a part of the path nearly names a split, or two are named.
    """
    found: dict[str, str] = {}
    for part in _parts(relative):
        for word, split in _named(part):
            found.setdefault(split, word)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise UnclearName(f"{first!r} is {NAMES[one]} and {second!r} is {NAMES[other]}")
    return next(iter(found), None)


def either_way(validation: Sequence[PurePath]) -> dict[PurePath, str]:
    """Of paths that name the validation split, those that may mean the test split, since others are certain.

    Returns:
        For each such path why it is unclear.
    """
    words = {path: {word for part in _parts(path) for word, _ in _named(part)} for path in validation}
    certain = next((path for path in validation if not words[path] <= EITHER_WAY), None)
    if certain is None:
        return {}
    return {
        path: f"validation, as {certain.name}, or test" for path in validation if words[path] <= EITHER_WAY
    }


def stem(name: str) -> str:
    """A file's name without what tells its kind: ``wiki.train.tokens`` is ``wiki.train``, ``ptb.train`` stays."""
    head, dot, ending = name.rpartition(".")
    return head if head and dot and not names_split(ending) else name


def names_split(word: str) -> bool:
    """Whether this is one of the words alone, but for digits and signs."""
    return "".join(_runs(word)).lower() in _SPLIT_OF


def glued(relatives: Iterable[PurePath]) -> dict[PurePath, str]:
    """Names that tell a split without a separator, which only several of them together give away.

    ``mytest`` may be a word; beside ``mytrain`` it is not.

    Returns:
        For each such path why it is unclear.
    """
    around: dict[tuple[str, str], dict[str, tuple[PurePath, str]]] = {}
    for relative in relatives:
        for lower in (run.lower() for part in _parts(relative) for run in _runs(part)):
            for word, split in _SPLIT_OF.items():
                if lower != word and (lower.startswith(word) or lower.endswith(word)):
                    rest = ("", lower[len(word) :]) if lower.startswith(word) else (lower[: -len(word)], "")
                    around.setdefault(rest, {}).setdefault(split, (relative, lower))
    return {
        relative: f"{word!r} beside {next(w for s, (_, w) in found.items() if s != split)!r}"
        for found in around.values()
        if len(found) > 1
        for split, (relative, word) in found.items()
    }


def _parts(relative: PurePath) -> list[str]:
    """The names of a path, its own first."""
    return [stem(relative.name), *reversed(relative.parent.parts)]


def _named(part: str) -> list[tuple[str, str]]:
    """Words of one part of a path and the split that each names.

    Raises:
        UnclearName: a word is nearly one that names a split, and no other word of the part names that split.
    """
    runs = _runs(part)
    known = [(word, _SPLIT_OF[word]) for run in runs for word in _known(run)]
    known += [
        ("heldout", "val") for one, two in pairwise(run.lower() for run in runs) if (one, two) in _HELD_OUT
    ]
    splits = {split for _, split in known}
    for run in runs:
        if not _known(run) and (near := _near(run.lower())) and near[1] not in splits:
            raise UnclearName(f"{run!r} is nearly {near[0]!r}")
    return known


_HELD_OUT = {("held", "out"), ("hold", "out")}


def _runs(part: str) -> list[str]:
    """The stretches of letters; ``train①`` has the same as ``train1``."""
    letters = (c if c.isalpha() else " " for c in unicodedata.normalize("NFKC", part))
    return "".join(letters).split()


def _known(run: str) -> list[str]:
    """The words that name splits in a stretch of letters: it as a whole, or its parts from capital to capital."""
    whole = _word(run.lower())
    if whole:
        return whole
    # TRAINSmall and TRAINset: capitals may end before the last of them or after it.
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", run) + re.findall(r"[A-Z]{2,}|[a-z]+", run)
    return [word for part in dict.fromkeys(parts) for word in _word(part.lower())]


def _word(letters: str) -> list[str]:
    """The words that name splits in letters without a capital among them: one, or two side by side."""
    base = _base(letters)
    if base in _SPLIT_OF:
        return [base]
    pairs = ((letters[:i], _base(letters[i:])) for i in range(3, len(letters) - 2))
    return next(([one, two] for one, two in pairs if one in _SPLIT_OF and two in _SPLIT_OF), [])


def _base(letters: str) -> str:
    """A word without its plural and without what is commonly written behind it: ``trainsets`` is ``train``."""
    for word in (letters, letters.removesuffix("s")):
        if word in _SPLIT_OF:
            return word
        for noun in _NOUNS:
            head = word.removesuffix(noun)
            if head != word and (head in _SPLIT_OF or head.removesuffix("s") in _SPLIT_OF):
                return head if head in _SPLIT_OF else head.removesuffix("s")
    return letters


def _near(letters: str) -> tuple[str, str] | None:
    """The word that was probably meant, and its split."""
    forms = {letters, letters.removesuffix("s")}
    forms |= {form.removesuffix(noun) for form in forms for noun in _NOUNS}
    if forms & _ORDINARY_WORDS:
        return None
    for form in sorted(forms, key=len, reverse=True):
        if form in _VERBS:
            return _VERBS[form], "val"
        for word, split in _SPLIT_OF.items():
            if len(word) >= 4 and len(form) >= 4 and _slips(form, word) <= (2 if len(word) >= _LONG else 1):
                return word, split
    return None


def _slips(one: str, two: str) -> int:
    """Letters added, left out, exchanged or swapped with their neighbour between two words (Damerau 1964)."""
    if abs(len(one) - len(two)) > 2:
        return 3
    before: list[int] = []
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        earlier, before, row = before, row, [i]
        for j, b in enumerate(two, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == two[j - 2] and b == one[i - 2]:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
    return row[-1]

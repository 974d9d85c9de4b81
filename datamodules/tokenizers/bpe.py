"""Byte-pair encoding over bytes, in GPT-2's form, by the ``tokenizers`` library."""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from app.run.bounded import MAX_TABLE_BYTES, parse_json, read_bytes, require_size
from app.run.errors import DataError
from datamodules.tokenizers.base import BytesTokenizer
from datamodules.tokenizers.byte import utf8

DEFAULT_VOCAB_SIZE = 8192
MIN_VOCAB_SIZE = 257  # the 256 bytes and one merge
#: characters from which pairs are learnt at once: enough to be fast, few enough to stay small in memory
_SLICE_CHARACTERS = 1 << 14
#: UTF-8 bytes of different words that pairs are learnt from: the library takes up to 130 bytes for each of them
MAX_LEARNT_BYTES = 8 << 20
#: a longer word, such as a line without white space, is learnt from in parts of so many characters: the library looks
#: through a whole word for each pair that it merges there
_MAX_LEARNT_CHARACTERS = 256
#: words merged at once by the library, which takes about a kilobyte for each
_WORDS_AT_ONCE = 1 << 13
#: words whose ids are remembered, in about 20 MB
_MAX_KNOWN_WORDS = 1 << 16
_MAX_KNOWN_CHARACTERS = 32
GPT2_FILES = ("vocab.json", "merges.txt")
_CUT = re.compile(r"(?<=\S)[ \n]")
_WORD = re.compile(r"\s*\S+(?:[^\S \n]\s*\S*)*|\s+")  # what lies between two cuts


class BPETokenizer(BytesTokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; bytes as in Radford et al. 2019).

    Every text can be encoded and comes back as it was. Text is cut into words, numbers and signs by GPT-2's
    pattern before pairs are merged; there are no special tokens.

    Args:
        vocabulary: token in the printable form of the bytes, to its id; ids are ``0 … n - 1``.
        merges: pairs of tokens, in the order in which they were learnt.
        kind: ``bpe``, or ``gpt2`` for that model's own.

    Raises:
        DataError: ids with gaps, tokens that stand for no bytes, or merges of or to no token.
    """

    kind: ClassVar[str] = "bpe"

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]):
        tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
        if not tokens or [vocabulary[token] for token in tokens] != list(range(len(tokens))):
            raise DataError("vocabulary: ids must be 0, 1, 2, … without gaps.")
        of_character = {character: value for value, character in enumerate(_printable_bytes())}
        missing = [character for character in of_character if character not in vocabulary]
        if missing:
            raise DataError(f"vocabulary: {len(missing)} of the 256 single bytes are missing.")
        # Asked here, because the library ends a process by what does not fit, or prints its stack.
        for left, right in merges:
            if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
                raise DataError(f"merges: do not fit the vocabulary ({left!r:.40}, {right!r:.40}).")
        try:
            super().__init__([_bytes_of(token, of_character) for token in tokens])
        except UnicodeEncodeError as error:
            raise DataError(f"vocabulary: the token {error.object!r:.40} holds half a character.") from None
        self._vocabulary = vocabulary
        self._merges = merges
        self._known: dict[str, list[int]] = {}

    @cached_property
    def _encoder(self) -> Any:
        import tokenizers

        try:
            model = tokenizers.models.BPE(self._vocabulary, self._merges)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"merges: do not fit the vocabulary ({error}).") from None
        encoder = tokenizers.Tokenizer(model)
        encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        return encoder

    def encode_compact(self, text: str) -> np.ndarray:
        """Token ids ``(n,)``.

        Most words of a text have occurred before: the library merges each once, and from then on it is looked
        up, which is several times as fast.

        Raises:
            DataError: a lone surrogate, which no UTF-8 text holds.
        """
        utf8(text, "strict")
        words = _WORD.findall(text)
        new = self._merged([word for word in dict.fromkeys(words) if word not in self._known])
        found = self._known | new
        ids = np.fromiter(chain.from_iterable(map(found.__getitem__, words)), dtype=self.dtype)
        short = (item for item in new.items() if len(item[0]) <= _MAX_KNOWN_CHARACTERS)
        self._known.update(islice(short, _MAX_KNOWN_WORDS - len(self._known)))
        return ids

    def _merged(self, words: list[str]) -> dict[str, list[int]]:
        """Ids of each of these words."""
        found = {}
        for first in range(0, len(words), _WORDS_AT_ONCE):
            some = words[first : first + _WORDS_AT_ONCE]
            encodings = self._encoder.encode_batch_fast(some, add_special_tokens=False)
            found.update({word: list(one.ids) for word, one in zip(some, encodings, strict=True)})
        return found

    def to_dict(self) -> dict[str, Any]:
        """Kind, tokens in the order of their ids, and merges as pairs of ids."""
        return {
            "kind": self.kind,
            "tokens": sorted(self._vocabulary, key=lambda token: self._vocabulary[token]),
            "merges": [[self._vocabulary[left], self._vocabulary[right]] for left, right in self._merges],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BPETokenizer":
        """The tokenizer of its plain values.

        Raises:
            DataError: they are of the wrong form.
        """
        try:
            tokens = [str(token) for token in values["tokens"]]
            if len(values["merges"]) > len(tokens):
                raise DataError("merges: are more than the tokens that they make.")
            pairs = [(left, right) for left, right in values["merges"]]
            if not all(type(end) is int and end >= 0 for pair in pairs for end in pair):
                raise TypeError
            merges = [(tokens[left], tokens[right]) for left, right in pairs]
        except (KeyError, TypeError, ValueError, IndexError):
            raise DataError("tokens, merges: must be a list of tokens and a list of pairs of ids.") from None
        return cls({token: number for number, token in enumerate(tokens)}, merges)


class GPT2Tokenizer(BPETokenizer):
    """GPT-2's own 50,257 tokens, read from its published vocabulary and merges."""

    kind: ClassVar[str] = "gpt2"

    @classmethod
    def from_files(cls, folder: Path) -> "GPT2Tokenizer":
        """Reads ``vocab.json`` and ``merges.txt``.

        Raises:
            DataError: they are not there, or not what they should be.
        """
        paths = [folder / name for name in GPT2_FILES]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            raise DataError(
                f"tokenizer gpt2: {' and '.join(missing)} not found. Put GPT-2's vocab.json and merges.txt there "
                "(https://huggingface.co/openai-community/gpt2), or name their folder as tokenizer_path."
            )
        try:
            listed = parse_json(read_bytes(paths[0], MAX_TABLE_BYTES))
            vocabulary = {str(k): int(v) for k, v in listed.items()}
            require_size(paths[1], MAX_TABLE_BYTES)
            lines = paths[1].read_text("utf-8").split("\n")
            merges = [(left, right) for left, right in (line.split(" ") for line in lines if _is_merge(line))]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{folder}: vocab.json and merges.txt are not GPT-2's ({error}).") from None
        return cls(vocabulary, merges)


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Learns the merges of a text, in bounded memory whatever it is.

    Once its different words take :data:`MAX_LEARNT_BYTES`, which those of some hundred megabytes of prose do not,
    those that have occurred before go on to count and new ones do not.

    Args:
        texts: parts of the training split.
        vocab_size: at most so many tokens, the 256 bytes among them; a short text has fewer pairs to merge.
    """
    import tokenizers

    encoder = tokenizers.Tokenizer(tokenizers.models.BPE())
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(_printable_bytes()), show_progress=False
    )
    encoder.train_from_iterator(_learnable(texts), trainer)
    model = json.loads(encoder.to_str())["model"]
    return BPETokenizer(model["vocab"], [(left, right) for left, right in model["merges"]])


def _learnable(texts: Iterable[str]) -> Iterator[str]:
    """Parts of the texts, without what would take more memory than :data:`MAX_LEARNT_BYTES` allow."""
    seen: set[str] = set()
    n_left = MAX_LEARNT_BYTES
    for part in (part for text in texts for part in slices(text)):
        words = _WORD.findall(part)
        is_whole = True
        for word in sorted(set(words) - seen):
            n_bytes = len(word) if word.isascii() else len(word.encode())
            is_short = len(word) <= _MAX_LEARNT_CHARACTERS
            is_whole = is_whole and is_short and n_bytes <= n_left
            if n_bytes > n_left:
                continue
            n_left -= n_bytes
            if is_short:
                seen.add(word)
            else:
                starts = range(0, len(word), _MAX_LEARNT_CHARACTERS)
                yield from (word[start : start + _MAX_LEARNT_CHARACTERS] for start in starts)
        yield part if is_whole else "".join(word for word in words if word in seen)


def slices(text: str, size: int = _SLICE_CHARACTERS) -> Iterable[str]:
    """Parts of a text whose tokens are together those of the whole: cut before white space after a word.

    GPT-2's pattern looks back at nothing, and ahead only from within white space, so that a match never
    reaches over such a place. A stretch of ``size`` characters without one is one part with what follows.
    """
    start = 0
    while len(text) - start > size:
        end = next_cut(text, start + size)
        if end == len(text):
            break
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def next_cut(text: str, position: int) -> int:
    """The first place from ``position`` on where a space or line end follows no white space; the end if none."""
    found = _CUT.search(text, position)
    return found.start() if found else len(text)


def _printable_bytes() -> list[str]:
    """GPT-2's character for each of the 256 bytes: itself where it is printable, else from U+0100 on."""
    kept = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(value if value in kept else next(others)) for value in range(256)]


def _bytes_of(token: str, of_character: dict[str, int]) -> bytes:
    """The bytes of a token; one outside the printable form, such as ``<|endoftext|>``, is its own text."""
    if all(character in of_character for character in token):
        return bytes([of_character[character] for character in token])
    return token.encode()


def _is_merge(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#version")

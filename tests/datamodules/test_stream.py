"""Tokens that arrive one at a time read like tokens that are decoded together."""

from collections.abc import Sequence

import pytest

from datamodules.stream import REPLACEMENT, TextStream, for_terminal

TEXT = "aé€😀, ﬁn 日本 ✓"


class Bytes:
    """Every token is one byte of UTF-8."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


class Words:
    """Every token is a word; a space stands between two of them."""

    WORDS = ("one", "two", "three")

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.WORDS[token] for token in ids)


def streamed(stream: TextStream, ids: Sequence[int]) -> list[str]:
    return [*(stream.add(token) for token in ids), stream.end()]


def test_parts_of_a_character_wait_for_the_rest() -> None:
    pieces = streamed(TextStream(Bytes()), TEXT.encode())
    assert "".join(pieces) == TEXT
    assert REPLACEMENT not in "".join(pieces)
    assert [piece for piece in pieces if piece] == list(TEXT)


def test_spaces_between_words_are_kept() -> None:
    assert "".join(streamed(TextStream(Words(), before=[0]), [1, 2] * 20)) == " two three" * 20
    assert streamed(TextStream(Words(), before=[0]), [1, 2]) == [" two", " three", ""]
    assert streamed(TextStream(Words()), [1, 2]) == ["two", " three", ""]


@pytest.mark.parametrize(
    "ids", [[0xE2, 0x82], [0xFF, 0x61], [0xFF] * 9 + [0x61], [0x61, 0xF0, 0x9F, 0x98, 0x61]]
)
def test_what_is_no_character_is_given_out_in_the_end(ids: list[int]) -> None:
    assert "".join(streamed(TextStream(Bytes()), ids)) == Bytes().decode(ids)


def test_tokens_that_all_end_inside_a_character() -> None:
    pieces = [
        b"a\xe2",
        b"\x82\xacb\xf0\x9f",
        b"\x98\x80\xc3",
        b"\xa9\xe2",
        b"\x82",
        b"\xac\xe2",
        b"\x82\xac",
    ] * 5

    class Pieces:
        def decode(self, ids: Sequence[int]) -> str:
            return b"".join(pieces[i] for i in ids).decode("utf-8", "replace")

    read = streamed(TextStream(Pieces()), range(len(pieces)))
    assert "".join(read) == b"".join(pieces).decode()
    assert REPLACEMENT not in "".join(read)


def test_a_prompt_may_end_inside_a_character() -> None:
    assert "".join(streamed(TextStream(Bytes(), before=[0x61]), "é".encode())) == "é"


def test_nothing_commands_a_terminal() -> None:
    assert for_terminal("a\tb\n") == "a\tb\n"
    assert for_terminal("\x1b[2J\r\x7f\x9b") == "\u241b[2J\u240d\u2421\ufffd"

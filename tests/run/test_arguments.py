"""The part of a command line that is read first."""

import pytest

from app.run.arguments import read, with_config
from app.run.errors import ConfigurationError


@pytest.mark.parametrize(
    ("words", "configs", "others"),
    [
        ("gpt_char", ["gpt_char"], []),
        ("gpt_char hardware/gpu --seed 3", ["gpt_char", "hardware/gpu"], ["--seed", "3"]),
        ("gpt_char -c mine.yaml", ["gpt_char", "mine.yaml"], []),
        ("--config gpt_char --seed 3", ["gpt_char"], ["--seed", "3"]),
        ("--seed 3 gpt_char", [], ["--seed", "3", "gpt_char"]),
        ("", [], []),
    ],
)
def test_a_command_line_may_begin_with_configurations(
    words: str, configs: list[str], others: list[str]
) -> None:
    launch = read(with_config(words.split()))
    assert (launch.configs, launch.overrides) == (configs, others)


def test_whether_a_resume_may_be_inexact_is_true_or_false() -> None:
    found = [
        read(words.split()).resume_inexact
        for words in ("", "--resume_inexact true", "--resume_inexact=false")
    ]
    assert found == [None, True, False]
    with pytest.raises(ConfigurationError, match="--resume_inexact: 'perhaps' is neither true nor false"):
        read(["--resume_inexact", "perhaps"])

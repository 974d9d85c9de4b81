from types import SimpleNamespace
from typing import Any

import pytest
from unseen_architecture import UnseenModule, train

from app.run.errors import DataError
from callbacks import TextSamples
from datamodules.tokenizers import CharTokenizer


def _train(callback: TextSamples, **arguments: Any) -> list[tuple[str, str, int]]:
    logger = train(UnseenModule(), [callback], limit_val_batches=1, **arguments)
    return logger.texts


def test_texts_after_each_validation_but_the_sanity_check() -> None:
    callback = TextSamples(["a", "b"], max_new_tokens=3, temperature=0.5, top_k=2, seed=7)
    texts = _train(callback, steps=4, val_check_interval=2, num_sanity_val_steps=1)
    assert texts == [
        ("samples/0", "a|3|0.5|2|7", 2),
        ("samples/1", "b|3|0.5|2|7", 2),
        ("samples/0", "a|3|0.5|2|7", 4),
        ("samples/1", "b|3|0.5|2|7", 4),
    ]
    assert callback.last == ["a|3|0.5|2|7", "b|3|0.5|2|7"]


def test_the_first_and_then_every_nth_validation() -> None:
    callback = TextSamples(every_n_validations=2)
    assert [step for *_, step in _train(callback, steps=5, val_check_interval=1)] == [1, 3, 5]
    resumed = TextSamples(every_n_validations=2)
    resumed.load_state_dict(callback.state_dict())
    assert [step for *_, step in _train(resumed, steps=3, val_check_interval=1)] == [2]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("prompts", []),
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("seed", -1),
        ("seed", 1 << 64),
        ("every_n_validations", 0),
    ],
)
def test_arguments_out_of_range_are_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument):
        TextSamples(**{argument: value})


def test_a_prompt_that_the_tokenizer_does_not_know_is_refused_before_the_first_step() -> None:
    data = SimpleNamespace(tokenizer=CharTokenizer("ab\n"))
    trainer = SimpleNamespace(datamodule=data)
    TextSamples(["", "ab\r\n"]).on_fit_start(trainer, None)
    with pytest.raises(
        DataError, match=r"^TextSamples: prompts\[1\]: the text holds 1 .* does not know: 'Ω'"
    ):
        TextSamples(["a", "Ω"]).on_fit_start(trainer, None)

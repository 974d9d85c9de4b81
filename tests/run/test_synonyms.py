"""The words of other codes lead to ours."""

import pytest

from app import options
from app.cli import COMMANDS
from app.commands.new import KINDS
from app.run.configuration import nearest
from app.run.synonyms import SYNONYMS, synonym
from app.training.command_line import IMPORTABLE
from app.training.config_errors import offered
from app.training.options import trainer_rules
from app.training.options.run import RunOptions

MEANT = {
    "fit": "train",
    "validate": "eval",
    "generate": "sample",
    "learning_rate": "lr",
    "weight_decay": "wd",
    "batch_size": "bs",
    "max_steps": "epochs max_epochs",
    "block_size": "seq_len context_length block",
    "d_model": "hidden_size embed_dim width n_embd",
    "n_layers": "layers depth n_layer",
    "n_heads": "heads n_head",
    "gradient_clip": "clip grad_clip gradient_clip_val",
    "warmup_steps": "warmup",
    "schedule": "lr_scheduler",
    "final_learning_rate_ratio": "min_lr",
    "seed": "seed_everything",
}


def test_each_word_finds_ours_among_all_of_them() -> None:
    for ours, words in MEANT.items():
        for word in words.split():
            assert nearest(word, [*SYNONYMS, "trace", "decay_fraction", "max_epochs"]) == ours, word


@pytest.mark.parametrize("word", ["Learning-Rate", "learning-rate", "LR"])
def test_hyphens_and_capitals_do_not_count(word: str) -> None:
    assert synonym(word, ["seed", "learning_rate"]) == "learning_rate"


def test_only_what_is_there_is_named() -> None:
    assert synonym("lr", ["seed"]) is None
    assert nearest("lr", ["seed"]) is None
    assert nearest("seeed", ["seed"]) == "seed"


def test_every_name_of_ours_is_one() -> None:
    """A name that changes must change in the table."""
    owners = [
        found for found in offered((*IMPORTABLE, "app.models"), object).values() if "__init__" in vars(found)
    ]
    ours = {*COMMANDS, *KINDS, "model", "data", *options.options_of(RunOptions), *trainer_rules.types()}
    ours |= {name for owner in owners for name in options.options_of(owner)}
    assert {*SYNONYMS} - ours == set()

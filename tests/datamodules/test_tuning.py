"""What is held out for tuning stands in place of the validation split, which nothing else reads then."""

from pathlib import Path

import numpy as np
import pytest
import torch

from app.run.errors import DataError
from datamodules import CharDataModule, SyntheticDataModule, TextDataModule


def text(folder: Path, n: int = 1000) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(chr(97 + i * i % 26) for i in range(n - n // 10)) + "z" * (n // 10))
    return path


def characters(folder: Path, **options: float) -> CharDataModule:
    return CharDataModule(path=str(text(folder)), block_size=8, batch_size=4, data_dir=str(folder), **options)


def test_the_end_of_the_training_split_is_cut_off(tmp_path: Path) -> None:
    whole, data = characters(tmp_path), characters(tmp_path, tuning_fraction=0.2)
    train = whole.check_source().train
    assert np.array_equal(data.check_source().train, train[:720])
    assert np.array_equal(data.check_source().val, train[720:])
    seen = torch.cat([y[y >= 0] for _, y in data.val_dataloader()])
    assert seen.tolist() == train[721:].tolist()
    assert data.notes() == ["val/* are of the tuning split; app validate reads the validation split"]
    assert "the last 180 training tokens are for tuning" in data.describe()
    starts = data.train_windows().starts(np.arange(2000))
    assert starts.max() + 8 < 720
    while_tuning = data.fingerprint
    data.open_validation()
    assert np.array_equal(data.check_source().val, whole.check_source().val)
    assert np.array_equal(data.check_source().train, train[:720])
    assert data.fingerprint == while_tuning != whole.fingerprint


def test_the_counts_are_of_what_is_evaluated(tmp_path: Path) -> None:
    data = characters(tmp_path, tuning_fraction=0.2)
    tuning = data.count_baseline(1, 4, 4, 1.0)
    data.open_validation()
    validation = data.count_baseline(1, 4, 4, 1.0)
    assert tuning is not None and validation is not None
    assert tuning.losses["val"] != validation.losses["val"]
    again = characters(tmp_path, tuning_fraction=0.2).count_baseline(1, 4, 4, 1.0, compute=False)
    assert again == tuning


def test_a_prepared_text(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("one two three four five six seven\n" * 60)
    data = TextDataModule(
        str(file), "word", block_size=8, cache_dir=str(tmp_path / "data"), tuning_fraction=0.25
    )
    whole = TextDataModule(str(file), "word", block_size=8, cache_dir=str(tmp_path / "data"))
    assert len(data.check_source().train) + len(data.check_source().val) == len(whole.check_source().train)
    assert data.bytes_per_token == pytest.approx(whole.bytes_per_token, rel=0.01)
    assert data.evaluated_text("val").words_per_token == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("fraction", [0.0001, 0.999])
def test_parts_that_are_too_short(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(DataError, match=r"tuning_fraction: .* training tokens leaves .* to train on"):
        characters(tmp_path, tuning_fraction=fraction).check_source()


def test_a_synthetic_task_has_a_tuning_set() -> None:
    sizes = {"length": 16, "vocab_size": 8}
    data = SyntheticDataModule(sizes=sizes, n_evaluation_windows=4, tuning_fraction=0.1)
    plain = SyntheticDataModule(sizes=sizes, n_evaluation_windows=4)
    (tuning,), (validation,) = data.val_dataloader(), plain.val_dataloader()
    assert not torch.equal(tuning.idx, validation.idx)
    assert torch.equal(data.training_batch(0, 0)[0], plain.training_batch(0, 0)[0])
    data.open_validation()
    assert torch.equal(next(iter(data.val_dataloader())).idx, validation.idx)

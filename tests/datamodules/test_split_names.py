"""Names that tell a split, nearly tell one, or tell two."""

from pathlib import PurePath

import pytest

from datamodules.split_names import UnclearName, either_way, glued, split_of


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train.txt train1.txt|train (1).txt|train[2].txt|TrainSet.txt|TRAINset.txt|trainset.txt|training.txt|"
            "TRAIN.TXT|trn.txt|trains.txt|trainA.txt|My_Train-Data.md|trainingData.jsonl|train٣.txt|train①.txt|ｔｒａｉｎ.txt|"
            "train-00000-of-00002.parquet|wiki.train.tokens|ptb.train|2024train_final.txt|TRAINSmall.txt|train — kopie.txt|"
            "train|Train Files/a.txt|data/train/deep/a.txt|train/trainset1.txt",
        ),
        (
            "val",
            "val.txt|valid1.txt|ValidSet.txt|validation-00000-of-00001.parquet|my_dev.jsonl|dev2.txt|devset.txt|"
            "development.txt|eval.txt|evalData.txt|evaluation.txt|holdout.txt|held-out.txt|hold_out_1.txt|HeldOut.txt|"
            "validations.txt|VAL/a.txt|wiki.valid.raw",
        ),
        (
            "test",
            "test.txt|tests.txt|testing.txt|tst.txt|TestSet.txt|testset(3).txt|test_data.txt|test²|wiki.test.raw|"
            "test/part-3.jsonl|T.Test.txt|ConTest.txt",
        ),
        (
            None,
            "notes.md|contest.txt|latest.txt|constrained.txt|protest.txt|pretrain.txt|text.txt|texts.txt|best.txt|rest.txt|"
            "rain.txt|brain.txt|trail.txt|evolution.txt|invalid.txt|level.txt|devil.txt|testament.txt|trans.txt|"
            "a.text|a.txt|attested/b.txt|stdlib.py|variations.txt|deviation.txt|Evans.txt|chapter 1.txt",
        ),
    ],
)
def test_names_tell_the_split(split: str | None, names: str) -> None:
    assert {name: split_of(PurePath(name)) for name in names.split("|")} == dict.fromkeys(
        names.split("|"), split
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("trian.txt", "'trian' is nearly 'train'"),
        ("Tets1.txt", "'Tets' is nearly 'test'"),
        ("tset.txt", "'tset' is nearly 'test'"),
        ("validaton.txt", "'validaton' is nearly 'validation'"),
        ("valdiaton.txt", "'valdiaton' is nearly 'validation'"),
        ("vaild (2).txt", "'vaild' is nearly 'valid'"),
        ("trainnig.jsonl", "'trainnig' is nearly 'training'"),
        ("traim/a.txt", "'traim' is nearly 'train'"),
        ("trianset.txt", "'trianset' is nearly 'train'"),
        ("testb.txt", "'testb' is nearly 'test'"),
        ("evaluate_me.txt", "'evaluate' is nearly 'evaluation'"),
        ("train_tets.txt", "'tets' is nearly 'test'"),
        ("train_test.txt", "'train' is training and 'test' is test"),
        ("TestOfTrain.txt", "'test' is test and 'train' is training"),
        ("trainval2007.txt", "'train' is training and 'val' is validation"),
        ("devtest.txt", "'dev' is validation and 'test' is test"),
        ("test/train.txt", "'train' is training and 'test' is test"),
        ("train/2/valid.txt", "'valid' is validation and 'train' is training"),
    ],
)
def test_names_that_leave_it_open_are_refused(name: str, reason: str) -> None:
    with pytest.raises(UnclearName) as caught:
        split_of(PurePath(name))
    assert str(caught.value) == reason


def test_words_without_a_separator_give_each_other_away() -> None:
    def found(*names: str) -> set[str]:
        return {path.as_posix() for path in glued(map(PurePath, names))}

    assert found("mytest.txt", "contest.txt") == set()
    assert found("mytest.txt", "mytrain.txt", "contest.txt") == {"mytest.txt", "mytrain.txt"}
    assert found("myval.txt", "mytrain.txt") == {"myval.txt", "mytrain.txt"}
    assert found("wikivalid1.txt", "wikitrain2.txt") == {"wikivalid1.txt", "wikitrain2.txt"}
    assert found("testenglish/a.txt", "trainenglish/a.txt") == {"testenglish/a.txt", "trainenglish/a.txt"}
    assert found("contest.txt", "context.txt", "latest.txt", "strain.txt", "invalid.txt") == set()


def test_words_that_mean_validation_to_some_and_test_to_others() -> None:
    def unclear(*names: str) -> list[str]:
        return [path.name for path in either_way([PurePath(name) for name in names])]

    assert unclear("eval.txt") == unclear("holdout.txt", "eval1.txt") == unclear("dev.txt", "valid.txt") == []
    assert unclear("dev.txt", "eval.txt") == ["eval.txt"]
    assert unclear("valid/holdout.txt", "dev.txt") == []

"""Data modules over prepared texts: windows, WikiText, texts that cannot be used."""

import json
import os
import random
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants

from app import options
from app.run.errors import ConfigurationError, DataError
from datamodules import HFTextDataModule, TextDataModule, WikiTextDataModule
from datamodules.loaders import IGNORED
from datamodules.tokenizers import WordTokenizer

#: lines in the form of the word-level WikiText files, made up; per line the tokens with its <eos>
LINES = [
    (" \n", 1),
    (" = The <unk> lighthouse = \n", 6),
    (" \n", 1),
    (" The <unk> lighthouse , built in 1 @,@ 842 , is 31 @.@ 5 m tall . \n", 18),
    (" Its keeper 's daughter wrote of storms ; few of her letters survive . \n", 15),
    (" \n", 1),
]


def make(path: Path, **args: Any) -> TextDataModule:
    values = {"tokenizer": "byte", "block_size": 4, "batch_size": 6, "cache_dir": str(path.parent / "cache")}
    return TextDataModule(str(path), **{**values, **args})


def placed(data: Any, **values: Any) -> Any:
    defaults = {
        "world_size": 1,
        "global_rank": 0,
        "accumulate_grad_batches": 1,
        "global_step": 0,
        "strategy": SimpleNamespace(root_device=torch.device("cpu")),
    }
    data.trainer = SimpleNamespace(**defaults | values)
    return data


def write_hub_layout(folder: Path, name: str, splits: dict[str, list[str]]) -> None:
    """The data set's folder as the hub has it: rows are lines, an empty line is an empty text."""
    (folder / name).mkdir(parents=True)
    for split, lines in splits.items():
        rows = [line if line.strip() else "" for line in lines]
        pq.write_table(pa.table({"text": rows}), folder / name / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\ndataset_info: []\n---\n")


# -- windows ----------------------------------------------------------------------------------------------


def test_exact_windows_of_a_tiny_text(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("abcdefg")
    (tmp_path / "valid.txt").write_text("uvwxyz")
    data = TextDataModule(
        str(tmp_path), tokenizer="char", block_size=3, batch_size=1, cache_dir=str(tmp_path / ".cache")
    )
    assert data.tokenizer.decode(np.arange(13)) == "abcdefguvwxyz"
    text = data.tokenizer.decode
    batches = [(text(x[0]), text(y[0])) for x, y in islice(data.train_dataloader(), 40)]
    # 7 tokens hold one tile of 3 targets; its phase is 0 to 3.
    assert set(batches) == {("abc", "bcd"), ("bcd", "cde"), ("cde", "def"), ("def", "efg")}
    assert batches[:6] == [(text(x[0]), text(y[0])) for x, y in islice(data.train_dataloader(), 6)]
    val = [(text(x[0]), text(y[0][y[0] != IGNORED])) for x, y in data.val_dataloader()]
    assert val == [("uvw", "vwx"), ("xya", "yz")]  # the last window is filled up


@pytest.mark.parametrize("num_workers", [0, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
def test_every_division_sees_the_same_global_batches(tmp_path: Path, num_workers: int) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(random.Random(1).choices("abcdefgh\n", k=600)))
    alone = [x for x, _ in islice(placed(make(path)).train_dataloader(), 12)]
    for world_size in (2, 3) if num_workers == 0 else (3,):
        parts = []
        for rank in range(world_size):
            data = placed(
                make(path, num_workers=num_workers), world_size=world_size, global_rank=rank, global_step=5
            )
            parts.append([x for x, _ in islice(data.train_dataloader(), 7)])
        for step in range(7):
            shards = [part[step] for part in parts]
            assert all(len(shard) == 6 // world_size for shard in shards)
            assert torch.equal(torch.cat(shards), alone[5 + step])  # disjoint, and resumed in mid-epoch


def test_every_epoch_covers_the_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(random.Random(1).choices("abcdefgh\n", k=120)))
    data = make(path, batch_size=1)
    tokens, windows = data.check_source().train, data.train_windows()
    for epoch in range(4):
        batches = islice(
            placed(make(path, batch_size=1), global_step=epoch * windows.n_tiles).train_dataloader(),
            windows.n_tiles,
        )
        targets = sorted(bytes(y[0].tolist()) for _, y in batches)
        phase = int(windows.starts(np.arange(windows.n_tiles) + epoch * windows.n_tiles).min())
        tiles = tokens[phase + 1 : phase + 1 + windows.n_tiles * 4].reshape(-1, 4)
        assert targets == sorted(bytes(tile.tolist()) for tile in tiles)
        assert len(tokens) - windows.n_tiles * 4 < 2 * 4 + 1


def test_a_gpu_is_given_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some words " * 100)
    asked: list[int] = []

    def here(tokens: np.ndarray, device: torch.device) -> torch.Tensor:
        assert device.type == "cuda"
        asked.append(len(tokens))
        return torch.from_numpy(tokens.copy())

    monkeypatch.setattr("datamodules.base.on_device", here)
    gpu = SimpleNamespace(root_device=torch.device("cuda", 0))
    streamed = placed(make(path, stride=2))
    sliced = placed(make(path, stride=2), strategy=gpu)
    for name in ("train_dataloader", "val_dataloader"):
        for _ in range(2):
            pairs = zip(islice(getattr(streamed, name)(), 9), islice(getattr(sliced, name)(), 9), strict=True)
            for (x, y), (x_sliced, y_sliced) in pairs:
                assert torch.equal(x, x_sliced)
                assert torch.equal(y, y_sliced)
    assert asked == [990, 110]  # each split once
    large = placed(make(path, max_bytes_on_device=500), strategy=gpu)
    assert large._on_device("train", large.check_source().train) is None
    assert large._on_device("val", large.check_source().val) is not None


# -- WikiText ---------------------------------------------------------------------------------------------


def test_wikitext_from_parquet_and_text_files_is_the_same(tmp_path: Path) -> None:
    lines = [line for line, _ in LINES] * 40
    write_hub_layout(
        tmp_path / "hub", "wikitext-2-v1", {"train": lines, "validation": lines[:60], "test": lines[6:18]}
    )
    plain = tmp_path / "plain"
    plain.mkdir()
    for split, part in (("train", lines), ("valid", lines[:60]), ("test", lines[6:18])):
        (plain / f"wiki.{split}.tokens").write_text("".join(part))
    prints = []
    for folder in (tmp_path / "hub", tmp_path / "hub" / "wikitext-2-v1", plain):
        data = WikiTextDataModule(
            "wikitext-2-v1", "word", data_dir=str(folder), block_size=8, cache_dir=str(tmp_path / "cache")
        )
        prints.append(data.fingerprint)
        assert "licence CC BY-SA 3.0 and GFDL" in data.describe()
    assert prints[0] == prints[1] == prints[2]
    n_line_tokens = [n for _, n in LINES]
    assert prints[0]["val_tokens"] == 10 * sum(n_line_tokens)
    assert prints[0]["test_tokens"] == 2 * sum(n_line_tokens)
    assert prints[0]["source"] == "wikitext-2-v1"
    assert data.evaluated_text("val").words_per_token == 1.0
    assert data.vocab_size == 2 + len({word for line, _ in LINES for word in line.split()} - {"<unk>"})


def test_wikitext_by_datasets_itself_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library finds configuration and splits in the hub's layout, here in a folder in place of the hub."""
    lines = [line for line, _ in LINES] * 20
    splits = {"train": lines, "validation": lines[:60], "test": lines[6:18]}
    write_hub_layout(tmp_path / "hub", "wikitext-2-v1", splits)
    configs = "".join(f"\n  - split: {split}\n    path: wikitext-2-v1/{split}-*" for split in splits)
    (tmp_path / "hub" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: wikitext-2-v1\n  data_files:{configs}\n---\n"
    )
    monkeypatch.setattr("datamodules.wikitext.DATASET", str(tmp_path / "hub"))
    monkeypatch.setattr("datamodules.hub._reaches_hub", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # both are put back afterwards
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    prints = [
        WikiTextDataModule(
            "wikitext-2-v1", "word", data_dir=data_dir, block_size=8, cache_dir=str(tmp_path / "cache")
        ).fingerprint
        for data_dir in (None, str(tmp_path / "hub"))
    ]
    assert prints[0] == prints[1]
    assert prints[0]["val_tokens"] == sum(len(line.split()) + 1 for line in splits["validation"])


def test_bytes_and_words_of_what_is_evaluated(tmp_path: Path) -> None:
    lines = "".join(line for line, _ in LINES)
    for split, n in (("train", 4), ("valid", 3), ("test", 2)):
        (tmp_path / f"{split}.txt").write_text(lines * n)
    for kind in ("word", "byte", "bpe", "char"):
        data = TextDataModule(str(tmp_path), tokenizer=kind, block_size=8, cache_dir=str(tmp_path / ".c"))  # type: ignore[arg-type]
        corpus, scale = data.check_source(), data.evaluated_text("val")
        n_bytes = corpus.tokenizer.token_bytes[corpus.val].sum() * scale.bytes_per_token_byte
        assert n_bytes == pytest.approx(len(lines.encode()) * 3, rel=1e-12)
        assert scale.words_per_token is not None
        # The first token of " \n…" holds the first line end for words and byte pairs, the others count it.
        n_words = 3 * sum(n for _, n in LINES) - (kind in ("word", "bpe"))
        assert scale.words_per_token * (len(corpus.val) - 1) == pytest.approx(n_words, rel=1e-12)


def test_without_validation_files_wikitext_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a")
    with pytest.raises(DataError, match="has no validation files"):
        WikiTextDataModule(data_dir=str(tmp_path)).check_source()


def test_offline_names_the_command_and_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.hub._reaches_hub", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # both are put back afterwards
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    cache = tmp_path / "cache"
    data = WikiTextDataModule(cache_dir=str(cache))
    data.prepare_command = "app prepare --config wikitext2_gpt"
    with pytest.raises(DataError) as caught:
        data.check_source()
    (message,) = caught.value.problems
    for part in (
        "cannot be reached",
        f"not prepared in {cache}",
        "`app prepare --config wikitext2_gpt`",
        "set data_dir to a folder",
        "wikitext-2-raw-v1/",
    ):
        assert part in message
    with pytest.raises(
        DataError, match=r"someone/stories: .* use a text of your own with datamodules.TextDataModule"
    ):
        HFTextDataModule("someone/stories", cache_dir=str(cache)).check_source()


def opened(**splits: list[Any]) -> Any:
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in splits.items()}
    )


def test_any_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    found = opened(train=["a story", "with\nlines\n"] * 30, validation=["", "another"] * 5)

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return found

    monkeypatch.setattr("datamodules.hub._reaches_hub", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)

    def stories(**args: Any) -> HFTextDataModule:
        return HFTextDataModule(
            "someone/stories", "small", "abc", tokenizer="byte", block_size=4, cache_dir=str(tmp_path), **args
        )

    corpus = stories().check_source()
    assert asked == [(("someone/stories", "small"), {"revision": "abc"})]
    assert corpus.tokenizer.decode(corpus.train) == "a story\nwith\nlines\n" * 30
    assert corpus.tokenizer.decode(corpus.val) == "\nanother\n" * 5
    assert stories().check_source().fingerprint == corpus.fingerprint
    assert len(asked) == 1  # prepared: the hub is not asked again
    found = opened(train=["a story"] * 40)
    cut = stories(val_fraction=0.25).check_source()
    assert (len(cut.train), len(cut.val)) == (240, 80)
    found = opened(train=["fine", None])
    with pytest.raises(DataError, match=r"someone/stories \(small\), split train, row 2: 'text' is null"):
        stories(val_fraction=0.3).check_source()
    with pytest.raises(DataError, match=r"someone/stories: no field 'body'; there are 'text'"):
        HFTextDataModule("someone/stories", text_column="body", cache_dir=str(tmp_path)).check_source()
    found = opened(test=["a"])
    with pytest.raises(DataError, match="has no split train; there are test"):
        HFTextDataModule("someone/else", cache_dir=str(tmp_path)).check_source()


def test_names_of_hub_splits_tell_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.hub._reaches_hub", lambda: True)

    def stories(number: int, **splits: list[Any]) -> HFTextDataModule:
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: opened(**splits))
        return HFTextDataModule(f"a/{number}", tokenizer="byte", block_size=4, cache_dir=str(tmp_path))

    some, other = ["one of many"] * 30, ["another"] * 9
    data = stories(1, train_sft=some, dev_sft=other, unsupervised=["no"], validaton=["no"])
    assert data.tokenizer.decode(data.check_source().val) == "another\n" * 9
    for again in (data, stories(1, train=["never asked"])):  # what is prepared says it too
        assert again.describe().splitlines()[1:] == [
            "         training    train_sft",
            "         validation  dev_sft",
            "         skipped     unsupervised (no split in the name)",
            "         skipped     validaton (unclear: 'validaton' is nearly 'validation')",
        ]
    data = stories(2, train=some, train_small=["no"], test=other)  # validation is cut from the end
    corpus = data.check_source()
    assert data.tokenizer.decode([*corpus.train, *corpus.val]) == "one of many\n" * 30
    assert data.tokenizer.decode(corpus.test) == "another\n" * 9
    assert "skipped     train_small (train is read)" in data.describe()
    with pytest.raises(DataError, match="several of its splits are for test: test_a, test_b"):
        stories(3, train=some, test_a=other, test_b=other).check_source()
    with pytest.raises(DataError, match="the training and the validation split hold the same text"):
        stories(4, train=some, validation=some).check_source()


# -- texts that cannot be used ----------------------------------------------------------------------------

BAD_TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the text is empty; 5 training tokens are needed"),
    "one token": (b"a", "training split has 0 tokens, block_size 4 needs 5"),
    "short": (b"abcde", "training split has 4 tokens, block_size 4 needs 5"),
    "blank": (b" \n\t\r\n" * 100, "the text is only white space (400 characters)"),
    "binary": (b"text" * 30 + b"\0\x01", "a NUL byte at byte offset 120"),
    "invalid": (b"fine " * 100 + b"\xff", "invalid UTF-8 at byte offset 500"),
    "UTF-16": ("words ".encode("utf-16") * 100, "looks like UTF-16"),
}


@pytest.mark.parametrize("kind", BAD_TEXTS)
@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "word", "char"])
def test_a_text_that_cannot_be_used(tmp_path: Path, kind: str, tokenizer: Any) -> None:
    path = tmp_path / "text.txt"
    content, reason = BAD_TEXTS[kind]
    path.write_bytes(content)
    if tokenizer in ("word", "bpe") and kind in ("one token", "short"):
        reason = "block_size 4 needs 5"
    with pytest.raises(DataError) as caught:
        make(path, tokenizer=tokenizer).check_source()
    assert reason in str(caught.value)
    (problem, *_) = caught.value.problems
    assert problem.count(str(path)) == 1  # named once, whatever reads it


def test_a_validation_split_that_is_empty(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("some words " * 20)
    (tmp_path / "valid.txt").write_text("")
    with pytest.raises(DataError, match="the validation split has 0 of the 220 tokens, it needs 2"):
        make(tmp_path, cache_dir=str(tmp_path / ".cache")).check_source()


def test_line_ends_of_another_system(tmp_path: Path) -> None:
    unix, other = tmp_path / "a.txt", tmp_path / "b.txt"
    unix.write_bytes(b"one\ntwo\n" * 50)
    other.write_bytes(b"\xef\xbb\xbf" + b"one\r\ntwo\r\n" * 50)
    assert make(unix).fingerprint == make(other).fingerprint


def test_symbols_that_a_given_tokenizer_does_not_know(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("abc\n" * 50)
    second.write_text("abd\n" * 50)
    file = tmp_path / "tokenizer.json"
    make(first, tokenizer="char").tokenizer.save(file)
    with pytest.raises(
        DataError, match=r"b\.txt: the text holds 45 character\(s\) that the tokenizer does not know: 'd'"
    ):
        make(second, tokenizer="char", tokenizer_path=str(file)).check_source()
    WordTokenizer(["<unk>", "<eos>", "abc"]).save(file)
    data = make(second, tokenizer="word", tokenizer_path=str(file))
    assert set(data.check_source().train.tolist()) == {0, 1}
    with pytest.raises(DataError, match=r"kind word, and tokenizer is char. Set tokenizer: word"):
        make(second, tokenizer="char", tokenizer_path=str(file)).check_source()
    with pytest.raises(DataError, match=r"gpt2: .*vocab\.json and .*merges\.txt not found"):
        make(second, tokenizer="gpt2").check_source()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"tokenizer": "bep"},
            "tokenizer = bep: must be one of bpe, word, char, byte, gpt2; did you mean bpe?",
        ),
        ({"max_vocab_size": 256}, "max_vocab_size = 256: must be at least 257 with tokenizer: bpe"),
        ({"n_processes": -1}, "n_processes = -1: "),
        ({"stride": 0}, "stride = 0: must be at least 1"),
        ({"stride": 257}, "stride = 257: must be at most block_size = 256"),
        ({"max_bytes_on_device": -1}, "max_bytes_on_device = -1: "),
        ({"val_fraction": 0.0}, "val_fraction = 0.0: "),
        (
            {"val_fraction": 0.5, "test_fraction": 0.5},
            "val_fraction = 0.5: and test_fraction = 0.5 leave nothing to train on",
        ),
    ],
)
def test_each_problem_names_field_value_and_rule(args: dict[str, Any], message: str) -> None:
    found = str(*options.problems(TextDataModule, {"path": "a.txt"} | args))
    assert found.startswith(message)
    with pytest.raises(ConfigurationError):
        TextDataModule("a.txt", **args)


def test_names_of_wikitext_and_settings_without_effect() -> None:
    found = str(*options.problems(WikiTextDataModule, {"name": "wikitext-2-raw"}))
    assert found.endswith("did you mean wikitext-2-raw-v1?")
    assert options.unused(TextDataModule, {"path": "a.txt"}) == {
        "text_column": "with a .txt file",
        "split_by_name": "with a .txt file",
    }
    assert options.unused(TextDataModule, {"path": "a.jsonl", "tokenizer": "byte"}) == {
        "max_vocab_size": "with tokenizer: byte",
        "tokenizer_path": "with tokenizer: byte",
        "split_by_name": "with a .jsonl file",
    }
    assert options.unused(TextDataModule, {"path": "folder"}) == {}
    assert [*options.unused(WikiTextDataModule, {"tokenizer_path": "a"})] == ["max_vocab_size"]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n{}\n")
    with pytest.raises(DataError, match=r"a\.jsonl, row 2: no field 'text'; there are none"):
        make(path).check_source()
    assert not [entry for entry in os.scandir(tmp_path / "cache") if entry.is_dir()]

"""Data sets of the hub, by the library's own transfer, from a hub on the loopback interface."""

import json
import os
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.run.errors import StorageError
from datamodules import hub
from datamodules.hub import HubDataset
from tests.support.application import REPOSITORY

NAME = "wikitext-2-v1"
CARD = f"""---
license:
- cc-by-sa-3.0
- gfdl
configs:
- config_name: {NAME}
  data_files:
  - split: test
    path: {NAME}/test-*
  - split: train
    path: {NAME}/train-*
  - split: validation
    path: {NAME}/validation-*
---
"""
LINES = [" \n", " = A <unk> title = \n", " \n", " the quick brown fox , 1 @,@ 842 of them . \n"]

# Its own process: the library reads the hub's address and its folders when it is imported.
SCENARIOS = """
import json, sys, time
from pathlib import Path
from tests.datamodules.hub_server import HubServer

server = HubServer(Path(sys.argv[1]))
import os
os.environ["HF_ENDPOINT"] = server.url
time.sleep = lambda seconds: None  # the library waits between its attempts
from datamodules import HFTextDataModule, WikiTextDataModule

def tell(name, make):
    server.sent.clear()
    try:
        data = make()
        corpus = data.check_source()
        told = {"text": {split: corpus.tokenizer.decode(getattr(corpus, split)) for split in ("train", "val", "test")},
                "tokens": data.fingerprint["val_tokens"], "summary": corpus.summary}
    except Exception as error:
        told = {"error": type(error).__name__, "problems": getattr(error, "problems", [repr(error)])}
    print(json.dumps({"name": name, "sent": list(server.sent), **told}), flush=True)

def wikitext(kind):
    return lambda: WikiTextDataModule("wikitext-2-v1", kind, block_size=8, cache_dir=sys.argv[2])

train = "wikitext-2-v1/train-00000-of-00001.parquet"
server.cut = {train: 100}
tell("broken off", wikitext("byte"))
server.cut = {}
server.flipped = {train}
tell("always damaged", wikitext("byte"))
server.flipped = set()
tell("whole", wikitext("byte"))
tell("another tokenizer", wikitext("word"))
tell("wrong column", lambda: HFTextDataModule("Salesforce/wikitext", "wikitext-2-v1", text_column="body", cache_dir=sys.argv[2]))
tell("wrong name", lambda: HFTextDataModule("Salesforce/wikitext", "wikitext-9", cache_dir=sys.argv[2]))
# Damaged after it was read: what the library has made of it is not to be had either.
from huggingface_hub import constants
for blob in Path(constants.HF_HUB_CACHE).glob("datasets--*/blobs/*"):
    if len(blob.name) == 64:
        blob.write_bytes(blob.read_bytes()[::-1])
tell("rotten", wikitext("char"))
tell("licence", lambda: HFTextDataModule("Salesforce/wikitext", "wikitext-2-v1", tokenizer="byte", block_size=8, cache_dir=sys.argv[2]))
server.shutdown()
server.server_close()
tell("prepared", wikitext("byte"))
tell("gone", lambda: HFTextDataModule("someone/else", cache_dir=sys.argv[2]))
"""


@pytest.fixture(scope="module")
def lines() -> dict[str, list[str]]:
    return {"train": LINES * 40, "validation": LINES[1:] * 5, "test": LINES * 3}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, lines: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """What became of each scenario."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "root" / NAME).mkdir(parents=True)
    (folder / "root" / "README.md").write_text(CARD)
    for split, rows in lines.items():
        table = pa.table({"text": [row if row.strip() else "" for row in rows]})
        pq.write_table(table, folder / "root" / NAME / f"{split}-00000-of-00001.parquet")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    ended = subprocess.run(
        [sys.executable, "-c", SCENARIOS, str(folder / "root"), str(folder / "cache")],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=environment | {"HF_HOME": str(folder / "home"), "no_proxy": "127.0.0.1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return {row["name"]: row for row in map(json.loads, ended.stdout.splitlines())}


def problem(row: dict[str, Any], kind: str = "DataError") -> str:
    assert row.get("error") == kind, row
    (only,) = row["problems"]
    assert "\n" not in only
    return str(only)


@pytest.mark.stress
def test_a_transfer_that_breaks_off_goes_on_with_what_is_missing(told: dict[str, dict[str, Any]]) -> None:
    message = problem(told["broken off"])
    assert "cannot be loaded (" in message
    assert "Files that have arrived whole are kept." in message
    assert f"{NAME}/test-00000-of-00001.parquet" in told["broken off"]["sent"]
    assert f"{NAME}/test-00000-of-00001.parquet" not in told["always damaged"]["sent"]


def test_the_text_is_that_of_the_files(told: dict[str, dict[str, Any]], lines: dict[str, list[str]]) -> None:
    whole = told["whole"]
    for ours, theirs in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert whole["text"][ours] == "".join(lines[theirs])
    words = told["another tokenizer"]
    assert words["tokens"] == sum(len(line.split()) + 1 for line in lines["validation"])
    assert words["sent"] == []  # fetched once
    assert "licence CC BY-SA 3.0 and GFDL" in words["summary"]


def test_a_damaged_file_is_told_by_its_hash_and_fetched_again(
    told: dict[str, dict[str, Any]], lines: dict[str, list[str]]
) -> None:
    train = f"{NAME}/train-00000-of-00001.parquet"
    always = told["always damaged"]
    assert "have another SHA-256 than the hub states, now and at a second attempt" in problem(always)
    assert always["sent"].count(train) == 2
    assert told["whole"]["sent"].count(train) == 1
    rotten = told["rotten"]
    assert rotten["text"]["train"] == "".join(lines["train"])
    assert sorted(name for name in rotten["sent"] if name.endswith("parquet")) == sorted(
        f"{NAME}/{split}-00000-of-00001.parquet" for split in lines
    )


def test_mistakes_are_told_in_one_line(told: dict[str, dict[str, Any]]) -> None:
    assert "no field 'body'; there are 'text'. Set text_column" in problem(told["wrong column"])
    assert "wikitext-9" in problem(told["wrong name"])
    assert NAME in problem(told["wrong name"])  # what there is


def test_the_card_names_the_licence(told: dict[str, dict[str, Any]]) -> None:
    assert "licence cc-by-sa-3.0, gfdl" in told["licence"]["summary"]


def test_a_hub_that_is_gone(told: dict[str, dict[str, Any]], lines: dict[str, list[str]]) -> None:
    assert told["prepared"]["text"]["val"] == "".join(lines["validation"])
    message = problem(told["gone"])
    assert "someone/else: the hub cannot be reached, and it is not prepared in" in message
    assert "Run `app prepare` where there is a network" in message


def test_no_room_for_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "_reaches_hub", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(StorageError, match=r"No space left on device\)\. Set HF_HOME to a folder"):
        _ = HubDataset("someone/stories").opened

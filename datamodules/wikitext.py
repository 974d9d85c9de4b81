"""WikiText (Merity et al. 2016, "Pointer Sentinel Mixture Models", arXiv 1609.07843)."""

import difflib
import os
from pathlib import Path
from typing import Any, Literal, get_args

from app.run.errors import DataError
from datamodules.base import MAX_BYTES_ON_DEVICE
from datamodules.hub import HubDataset
from datamodules.preparation import TokenizerKind
from datamodules.prepared import PreparedDataModule, shared_arguments
from datamodules.splits import DataSource, HubTexts, local_source

WikiTextName = Literal["wikitext-2-raw-v1", "wikitext-103-raw-v1", "wikitext-2-v1", "wikitext-103-v1"]
NAMES: tuple[str, ...] = get_args(WikiTextName)
DATASET = "Salesforce/wikitext"
REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
LICENSE = "CC BY-SA 3.0 and GFDL"
# Rows of the hub are lines of the original files, in which an empty line is a space; in the rows it is nothing.
BLANK_ROW = " \n"


class WikiTextDataModule(PreparedDataModule):
    """WikiText-2 or WikiText-103, from the Hugging Face hub at a pinned revision, or from local files.

    The ``raw`` forms hold the text as it is. The others are the word-level form of the literature, in which
    rare words are ``<unk>``: with ``tokenizer: word`` every line ends with ``<eos>``, WikiText-2 has
    2,088,628 / 217,646 / 245,569 tokens of 33,278, and ``val/word_perplexity`` is the published measure.

    Args:
        name: which of the four.
        tokenizer: ``bpe``, ``word``, ``char``, ``byte`` or ``gpt2``.
        data_dir: folder of the data set's own files, in place of the hub: parquet as on the hub, in the
            folder itself or in one of the data set's name below it, or text files; ``train``, ``valid`` and
            ``test`` in their names tell the splits.
        tokenizer_path: a ``tokenizer.json`` to use as it is; for ``gpt2`` the folder of its files.
        max_vocab_size: largest vocabulary of ``bpe`` (None: 8,192) and ``word`` (None: every word).
        block_size: tokens per window, at least 2.
        batch_size: windows per optimizer step, over all ranks and accumulated micro-batches.
        stride: targets by which evaluation windows move on, in [1, block_size]; None is ``block_size``.
        num_workers: loader processes.
        seed: of the windows' order, in [0, 2^63).
        repeat_windows: if positive, train on the first so many windows only, over and over.
        max_bytes_on_device: largest token file that is kept on a GPU, where batches are then sliced.
        n_processes: that encode; 0 takes one per core.
        cache_dir: folder for everything that is prepared.

    Raises:
        ConfigurationError: arguments out of range, all at once. Reading the text raises DataError.
    """

    def __init__(
        self,
        name: WikiTextName = "wikitext-2-raw-v1",
        tokenizer: TokenizerKind = "bpe",
        data_dir: str | None = None,
        tokenizer_path: str | None = None,
        max_vocab_size: int | None = None,
        block_size: int = 256,
        batch_size: int = 32,
        stride: int | None = None,
        num_workers: int = 0,
        seed: int = 1337,
        repeat_windows: int = 0,
        max_bytes_on_device: int = MAX_BYTES_ON_DEVICE,
        n_processes: int = 0,
        cache_dir: str = "data/prepared",
    ):
        super().__init__(**shared_arguments(locals()), val_fraction=0.1, test_fraction=0.0)
        self.name: WikiTextName = name
        self.data_dir = data_dir

    @classmethod
    def problems(cls, **args: Any) -> list[str]:
        """All range problems of constructor arguments at once, without reading anything."""
        found = super().problems(**args)
        name = args.get("name", NAMES[0])
        if name not in NAMES:
            nearest = difflib.get_close_matches(str(name), NAMES, n=1, cutoff=0.4)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            found.append(f"name: {name!r} is none of {', '.join(NAMES)}.{hint}")
        return found

    @property
    def remedy_offline(self) -> str:
        """How to do without the network, beside preparing elsewhere."""
        return (
            f"set data_dir to a folder with the data set's files (parquet as in {self.name}/ of the hub's "
            f"{DATASET}, or text files; train, valid and test in their names)"
        )

    def open_source(self) -> DataSource:
        """The files, or the hub's data set.

        Raises:
            DataError: ``data_dir`` is not there, or lacks a split.
        """
        if self.data_dir is None:
            dataset = HubDataset(DATASET, self.name, REVISION, blank_row=BLANK_ROW)
            identity = {"dataset": DATASET, "name": self.name, "revision": REVISION}
            return DataSource(
                self.name, f"WikiText {self.name}", identity, HubTexts(dataset), license=LICENSE
            )
        folder = Path(self.data_dir).expanduser()
        inner = folder / self.name
        source = local_source(inner if os.path.isdir(inner) else folder, "text", self.name, BLANK_ROW)
        if "val" not in source.texts:
            raise DataError(
                f"data_dir: {folder} has no validation files; name the splits train, valid and test "
                "(such as wiki.train.raw or train-00000-of-00001.parquet)."
            )
        return DataSource(
            self.name, f"WikiText {self.name}", source.identity, source.texts, source.files, LICENSE
        )

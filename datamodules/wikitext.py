"""WikiText (Merity et al. 2016, "Pointer Sentinel Mixture Models", arXiv 1609.07843)."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from app.run.errors import DataError
from app.run.paths import typed_path
from datamodules.base import PathName
from datamodules.hub import HubDataset
from datamodules.prepared import PreparedDataModule
from datamodules.splits import DataSource, HubTexts, local_source

WikiTextName = Literal["wikitext-2-raw-v1", "wikitext-103-raw-v1", "wikitext-2-v1", "wikitext-103-v1"]
DATASET = "Salesforce/wikitext"
REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
LICENSE = "CC BY-SA 3.0 and GFDL"
# Rows of the hub are lines of the original files, in which an empty line is a space; in the rows it is nothing.
BLANK_ROW = " \n"


class WikiTextDataModule(PreparedDataModule, without=("val_fraction", "test_fraction")):
    """WikiText-2 or WikiText-103, from the Hugging Face hub at a pinned revision, or from local files.

    The ``raw`` forms hold the text as it is. The others are the word-level form of the literature, in which
    rare words are ``<unk>``: with ``tokenizer: word`` every line ends with ``<eos>``, WikiText-2 has
    2,088,628 / 217,646 / 245,569 tokens of 33,278, and ``val/word_perplexity`` is the published measure.

    Args:
        name: which of the four.
        data_dir: folder of the data set's own files, in place of the hub: parquet as on the hub, in the
            folder itself or in one of the data set's name below it, or text files; ``train``, ``valid`` and
            ``test`` in their names tell the splits.
        prepared: options of :class:`~datamodules.prepared.PreparedDataModule`.
    """

    def __init__(
        self, name: WikiTextName = "wikitext-2-raw-v1", *, data_dir: PathName | None = None, **prepared: Any
    ):
        super().__init__(**prepared)
        self.name: WikiTextName = name
        self.data_dir = data_dir

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
        folder = Path(typed_path(self.data_dir))
        inner = folder / self.name
        source = local_source(inner if os.path.isdir(inner) else folder, "text", self.name, BLANK_ROW)
        if "val" not in source.texts:
            raise DataError(
                f"data_dir: {folder} has no validation files; name the splits train, valid and test "
                "(such as wiki.train.raw or train-00000-of-00001.parquet)."
            )
        return replace(source, label=f"WikiText {self.name}", license=LICENSE)

"""Any text data set of the Hugging Face hub."""

from typing import Any

from datamodules.hub import HubDataset
from datamodules.prepared import PreparedDataModule
from datamodules.splits import DataSource, HubTexts


class HFTextDataModule(PreparedDataModule):
    """Any text data set of the Hugging Face hub.

    It is downloaded by ``datasets`` and tokenised once. Rows are joined by line ends. Splits named
    ``validation``, ``valid``, ``val`` or ``dev`` validate;
    where there is none, the end of ``train`` does.

    Args:
        dataset: ``owner/name`` on the hub.
        name: configuration of the data set; None where it has only one.
        revision: commit, tag or branch. None takes what is newest when it is first prepared and keeps that;
            a commit makes the run repeatable elsewhere.
        text_column: the field with the text.
        prepared: options of :class:`~datamodules.prepared.PreparedDataModule`; the download goes to the cache of
            ``datasets``.
    """

    def __init__(
        self,
        dataset: str,
        name: str | None = None,
        revision: str | None = None,
        text_column: str = "text",
        **prepared: Any,
    ):
        super().__init__(**prepared)
        self.dataset = dataset
        self.name = name
        self.revision = revision
        self.text_column = text_column

    def open_source(self) -> DataSource:
        """The data set; the hub is asked when it has to be prepared."""
        dataset = HubDataset(self.dataset, self.name, self.revision, self.text_column)
        identity = {
            "dataset": self.dataset,
            "name": self.name,
            "revision": self.revision,
            "text_column": self.text_column,
        }
        folder = "-".join(part.replace("/", "-") for part in (self.dataset, self.name) if part)
        return DataSource(folder, dataset.label, identity, HubTexts(dataset))

"""Any text data set of the Hugging Face hub."""

from datamodules.base import MAX_BYTES_ON_DEVICE
from datamodules.hub import HubDataset
from datamodules.preparation import TokenizerKind
from datamodules.prepared import PreparedDataModule, shared_arguments
from datamodules.splits import DataSource, HubTexts


class HFTextDataModule(PreparedDataModule):
    """A data set of the hub by its name, downloaded by ``datasets`` and tokenised once.

    Rows are joined by line ends. Splits named ``validation``, ``valid``, ``val`` or ``dev`` validate;
    where there is none, the end of ``train`` does.

    Args:
        dataset: ``owner/name`` on the hub.
        name: configuration of the data set; None where it has only one.
        revision: commit, tag or branch. None takes what is newest when it is first prepared and keeps that;
            a commit makes the run repeatable elsewhere.
        text_column: the field with the text.
        tokenizer: ``bpe``, ``word``, ``char``, ``byte`` or ``gpt2``.
        tokenizer_path: a ``tokenizer.json`` to use as it is; for ``gpt2`` the folder of its files.
        max_vocab_size: largest vocabulary of ``bpe`` (None: 8,192) and ``word`` (None: every word).
        block_size: tokens per window, at least 2.
        batch_size: windows per optimizer step, over all ranks and accumulated micro-batches.
        stride: targets by which evaluation windows move on, in [1, block_size]; None is ``block_size``.
        val_fraction: share of ``train`` for validation, where there is no such split, in (0, 1).
        test_fraction: share of ``train`` for the test split, in the same case, in [0, 1).
        num_workers: loader processes.
        seed: of the windows' order, in [0, 2^63).
        repeat_windows: if positive, train on the first so many windows only, over and over.
        max_bytes_on_device: largest token file that is kept on a GPU, where batches are then sliced.
        n_processes: that encode; 0 takes one per core.
        cache_dir: folder for everything that is prepared; the download goes to the cache of ``datasets``.

    Raises:
        ConfigurationError: arguments out of range, all at once. Reading the text raises DataError.
    """

    def __init__(
        self,
        dataset: str,
        name: str | None = None,
        revision: str | None = None,
        text_column: str = "text",
        tokenizer: TokenizerKind = "bpe",
        tokenizer_path: str | None = None,
        max_vocab_size: int | None = None,
        block_size: int = 256,
        batch_size: int = 32,
        stride: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        num_workers: int = 0,
        seed: int = 1337,
        repeat_windows: int = 0,
        max_bytes_on_device: int = MAX_BYTES_ON_DEVICE,
        n_processes: int = 0,
        cache_dir: str = "data/prepared",
    ):
        super().__init__(**shared_arguments(locals()))
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

"""Text files of one's own."""

from pathlib import Path
from typing import Any

from datamodules.base import MAX_BYTES_ON_DEVICE
from datamodules.preparation import TokenizerKind
from datamodules.prepared import PreparedDataModule, shared_arguments
from datamodules.splits import DataSource, local_source


class TextDataModule(PreparedDataModule):
    """A text file, JSON lines, a parquet file, or a folder of them, tokenised once.

    Args:
        path: the file (``.jsonl`` and ``.ndjson``: one JSON object per line; ``.parquet``; any other ending:
            UTF-8 text) or the folder. In a folder, a file with ``train``, ``valid`` or ``test`` in its name
            belongs to that split; without such names all files are one text, in the order of their paths.
        text_column: the field with the text, of JSON lines and parquet.
        tokenizer: ``bpe``, ``word``, ``char``, ``byte`` or ``gpt2``.
        tokenizer_path: a ``tokenizer.json`` to use as it is; for ``gpt2`` the folder of its files.
        max_vocab_size: largest vocabulary of ``bpe`` (None: 8,192) and ``word`` (None: every word).
        block_size: tokens per window, at least 2.
        batch_size: windows per optimizer step, over all ranks and accumulated micro-batches.
        stride: targets by which evaluation windows move on, in [1, block_size]; None is ``block_size``.
        val_fraction: share of the text for validation, where no file is named so, in (0, 1).
        test_fraction: share for the test split, in the same case, in [0, 1).
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
        path: str,
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
        self.path = path
        self.text_column = text_column

    @classmethod
    def without_effect(cls, **args: Any) -> list[tuple[str, str]]:
        """Name and reason of every argument that does nothing beside the others."""
        found = super().without_effect(**args)
        suffix = Path(str(args.get("path", ""))).suffix.lower()
        if suffix in (".txt", ".text", ".md", ".rst", ".py"):
            found.append(("text_column", f"with a {suffix} file"))
        return found

    def open_source(self) -> DataSource:
        """The files.

        Raises:
            DataError: nothing there, or nothing to train on.
        """
        return local_source(Path(self.path).expanduser(), self.text_column)

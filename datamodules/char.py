"""Characters of a text: the embedded default, a small downloaded corpus, or the user's own files."""

import difflib
from pathlib import Path
from typing import Any

from app.run.errors import ConfigurationError
from datamodules.base import MAX_BYTES_ON_DEVICE, TokenDataModule
from datamodules.corpus import Corpus, read_char_corpus
from datamodules.sources import SOURCE_NAMES, SourceName, open_source


class CharDataModule(TokenDataModule):
    """Character-level language modelling on one text, split into consecutive parts.

    Args:
        source: ``stdlib`` (the default): source of the running Python's top-level standard-library modules,
            ASCII part, no network needed. ``stdlib_full``: the same of all packages. ``tinyshakespeare``:
            downloaded once into ``data_dir``.
        path: a UTF-8 text file, or a folder whose text files (``.txt``, ``.text``, ``.md``, ``.rst``,
            ``.py``) are joined in order; instead of ``source``.
        block_size: characters per window, at least 2.
        batch_size: windows per optimizer step, over all ranks and accumulated micro-batches.
        val_fraction: share of the text for validation, after the training part, in (0, 1).
        test_fraction: share at the end for the test split, in [0, 1); the two fractions sum to less than 1.
        num_workers: loader processes.
        seed: of the windows' order, in [0, 2^63).
        repeat_windows: if positive, train on the first so many windows only, over and over.
        stride: targets by which evaluation windows move on, in [1, block_size]; None is ``block_size``.
        max_bytes_on_device: largest token array that is kept on a GPU, where batches are then sliced.
        data_dir: folder for the downloaded text, and for the temporary file of a very large one.

    Raises:
        ConfigurationError: arguments out of range, all at once. Reading the text raises DataError.
    """

    def __init__(
        self,
        source: SourceName | None = None,
        path: str | None = None,
        block_size: int = 256,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        num_workers: int = 0,
        seed: int = 1337,
        repeat_windows: int = 0,
        stride: int | None = None,
        max_bytes_on_device: int = MAX_BYTES_ON_DEVICE,
        data_dir: str = "data",
    ):
        found = self.problems(
            source=source,
            path=path,
            block_size=block_size,
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            num_workers=num_workers,
            seed=seed,
            repeat_windows=repeat_windows,
            stride=stride,
            max_bytes_on_device=max_bytes_on_device,
        )
        if found:
            raise ConfigurationError(found)
        super().__init__(
            block_size, batch_size, num_workers, seed, repeat_windows, stride, max_bytes_on_device
        )
        self.source = source
        self.path = path
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.data_dir = data_dir

    @classmethod
    def problems(cls, **args: Any) -> list[str]:
        """All range problems of constructor arguments at once, without reading anything."""
        found = super().problems(**args)
        values = cls.with_defaults(args)
        source, val, test = values["source"], values["val_fraction"], values["test_fraction"]
        if source is not None and source not in SOURCE_NAMES:
            nearest = difflib.get_close_matches(str(source), SOURCE_NAMES, n=1, cutoff=0.4)
            hint = f" Did you mean {nearest[0]}?" if nearest else " Use `path` for a file or a folder."
            found.append(f"source: {source!r} is none of {', '.join(SOURCE_NAMES)}.{hint}")
        if source is not None and values["path"] is not None:
            found.append(f"source: {source!r} and path {values['path']!r} are both given. Keep one of them.")
        if not 0 < val < 1:  # also refuses NaN
            found.append(f"val_fraction: {val} must be above 0 and below 1; 0.1 is usual.")
        if not 0 <= test < 1:
            found.append(f"test_fraction: {test} must be at least 0 and below 1; 0 means no test split.")
        if 0 < val < 1 and 0 <= test < 1 and val + test >= 1:
            found.append(
                f"val_fraction: {val} + test_fraction {test} leave nothing to train on. "
                "Their sum must be below 1."
            )
        return found

    def read_corpus(self) -> Corpus:
        """Reads, tokenises and splits the text.

        Raises:
            DataError: the text cannot be used.
        """
        return read_char_corpus(
            open_source(self.source, self.path, self.data_dir),
            block_size=self.block_size,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            data_dir=Path(self.data_dir).expanduser(),
        )

"""What the framework says that a person who runs us need not read."""

import logging
import warnings


def quiet() -> None:
    """Silences the framework's advertisements and restatements; its warnings about faults stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*treespec, LeafSpec.*",  # the framework's own use of a deprecated function
        r".*does not have many workers.*",  # our loaders gather a batch in microseconds
        r".*Consider setting `persistent_workers=True`.*",
        r".*is smaller than the logging interval.*",
        r".*skip_none parameter was deprecated.*",
        r".*was deprecated in v4\.49.*",
        r".*`training_step` returned.*",
    ):
        warnings.filterwarnings("ignore", message=message)

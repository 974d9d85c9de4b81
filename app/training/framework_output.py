"""What the framework says that a person who runs us need not read."""

import logging
import warnings


def silence_framework() -> None:
    """Silences the framework's advertisements and restatements; its warnings about faults stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*treespec, LeafSpec.*",  # the framework's own use of a deprecated function
        r".*does not have many workers.*",  # our loaders gather a batch in microseconds
        r".*Consider setting `persistent_workers=True`.*",
        r".*is smaller than the logging interval.*",
        r".*skip_none parameter was deprecated.*",
        r".*The `srun` command is available.*",  # one process needs none; those of one node we start ourselves
        r".*was deprecated in v4\.49.*",
        r".*`training_step` returned.*",
        r".*self\.log\('(val|test)/.*sync_dist=True.*",  # these figures are those of all ranks already
    ):
        warnings.filterwarnings("ignore", message=message)

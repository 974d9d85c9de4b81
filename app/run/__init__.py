"""Run machinery below the framework: directory, lock, status, checkpoints, signals, randomness, errors."""

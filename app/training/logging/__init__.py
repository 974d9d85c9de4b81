"""Loggers of a run: TensorBoard's event files, metrics.csv and what lies beside it."""

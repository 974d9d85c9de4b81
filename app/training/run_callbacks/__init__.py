"""Callbacks that belong to every run: checkpoints, records, stops."""

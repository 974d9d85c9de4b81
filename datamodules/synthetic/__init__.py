"""Synthetic tasks, one file each, found by their names; see :mod:`datamodules.tasks`."""

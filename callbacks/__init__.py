"""Watchers of a run: each documents the keys, units and ranges that it logs."""

from callbacks.bank_balance import BankBalance
from callbacks.route_fractions import RouteFractions
from callbacks.text_samples import TextSamples
from callbacks.throughput import Throughput
from callbacks.watcher import MeasureWatcher

__all__ = ["BankBalance", "MeasureWatcher", "RouteFractions", "TextSamples", "Throughput"]

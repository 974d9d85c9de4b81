"""Watchers of a run: each documents the keys, units and ranges that it logs."""

from callbacks.bank_balance import BankBalance
from callbacks.crystal_spectrum import CrystalSpectrum
from callbacks.depth_figures import DepthTimeFigures
from callbacks.energy_budget import EnergyBudget
from callbacks.gamma_trajectory import GammaTrajectory
from callbacks.gradient_alignment import GradientAlignment
from callbacks.route_fractions import RouteFractions
from callbacks.run_health import RunHealth
from callbacks.running_thresholds import RunningThresholds
from callbacks.ternary_health import TernaryHealth
from callbacks.text_samples import TextSamples
from callbacks.throughput import Throughput
from callbacks.watcher import MeasureWatcher, Watcher

__all__ = [
    "BankBalance",
    "CrystalSpectrum",
    "DepthTimeFigures",
    "EnergyBudget",
    "GammaTrajectory",
    "GradientAlignment",
    "MeasureWatcher",
    "RouteFractions",
    "RunHealth",
    "RunningThresholds",
    "TernaryHealth",
    "TextSamples",
    "Throughput",
    "Watcher",
]

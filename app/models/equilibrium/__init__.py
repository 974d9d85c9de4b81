"""Equilibrium: tokens routed by their deviation from running activation statistics."""

from app.models.equilibrium.attention_residual import AttentionResidual
from app.models.equilibrium.branches import BranchHeads, Verifier, VerifierOutput
from app.models.equilibrium.budget import TokenEnergyBudget
from app.models.equilibrium.network import EquilibriumLM
from app.models.equilibrium.plastic import PlasticAdapter
from app.models.equilibrium.records import EquilibriumRecord
from app.models.equilibrium.routing import RouteOutput, RoutingDecision
from app.models.equilibrium.signal import EquilibriumOutput, EquilibriumSignal

__all__ = [
    "AttentionResidual",
    "BranchHeads",
    "EquilibriumLM",
    "EquilibriumOutput",
    "EquilibriumRecord",
    "EquilibriumSignal",
    "PlasticAdapter",
    "RouteOutput",
    "RoutingDecision",
    "TokenEnergyBudget",
    "Verifier",
    "VerifierOutput",
]

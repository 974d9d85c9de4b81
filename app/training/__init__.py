"""LightningModules, and the Lightning side of the run machinery."""

from app.training.distributed import SupervisedDDPStrategy
from app.training.language_model import LanguageModelModule
from app.training.modules import (
    CrystalGPTModule,
    EquilibriumModule,
    GPTModule,
    LocalGPTModule,
    TilelliModule,
)
from app.training.sharded import SupervisedFSDPStrategy

__all__ = [
    "CrystalGPTModule",
    "EquilibriumModule",
    "GPTModule",
    "LanguageModelModule",
    "LocalGPTModule",
    "SupervisedDDPStrategy",
    "SupervisedFSDPStrategy",
    "TilelliModule",
]

"""LightningModules, and the Lightning side of the run machinery."""

from app.training.crystal import CrystalGPTModule
from app.training.distributed import SupervisedDDPStrategy
from app.training.equilibrium import EquilibriumModule
from app.training.gpt import GPTModule
from app.training.language_model import LanguageModelModule
from app.training.local_gpt import LocalGPTModule
from app.training.tilelli import TilelliModule

__all__ = [
    "CrystalGPTModule",
    "EquilibriumModule",
    "GPTModule",
    "LanguageModelModule",
    "LocalGPTModule",
    "SupervisedDDPStrategy",
    "TilelliModule",
]

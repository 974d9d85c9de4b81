"""LightningModules, and the Lightning side of the run machinery."""

from app.training.distributed import SupervisedDDPStrategy
from app.training.gpt import GPTModule
from app.training.language_model import LanguageModelModule
from app.training.tilelli import TilelliModule

__all__ = ["GPTModule", "LanguageModelModule", "SupervisedDDPStrategy", "TilelliModule"]

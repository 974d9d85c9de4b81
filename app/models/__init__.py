"""Networks: plain PyTorch modules that know nothing of the training framework."""

from app.models.language_model import LanguageModel
from app.records import LanguageModelOutput

__all__ = ["LanguageModel", "LanguageModelOutput"]

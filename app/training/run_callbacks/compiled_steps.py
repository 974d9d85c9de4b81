"""Lets ``torch.compile`` have the training steps."""

from lightning.pytorch import Callback, LightningModule, Trainer

from app.training.compiled import Compiled
from app.training.language_model import LanguageModelModule
from app.training.options.run import CompileMode
from app.training.reproducible import is_reproducible


class CompiledSteps(Callback):
    """Compiles the network for the time of a training, see :class:`~app.training.compiled.Compiled`.

    Args:
        mode: ``blocks`` or ``full``.
    """

    def __init__(self, mode: CompileMode):
        self.mode = mode

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compiling itself happens in the first step."""
        assert isinstance(pl_module, LanguageModelModule)
        pl_module.compiled = Compiled(pl_module.network, self.mode, is_reproducible(pl_module.device))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end of a training."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What is compiled later in this process is not our business."""
        assert isinstance(pl_module, LanguageModelModule)
        if pl_module.compiled is not None:
            pl_module.compiled.release()
            pl_module.compiled = None

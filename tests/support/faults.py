"""Faults: Python source that a forked application process runs before its command."""

from string import Template
from typing import Any

#: places in a run that a fault can be put at: hook, and what must hold there
PLACES = {
    # Micro-steps are counted from 0 and steps from 1: the fault falls before the step is made.
    "step": ("app.training.LanguageModelModule.training_step", "self.trainer.global_step == $step - 1"),
    # The same also where the step is replayed from a graph.
    "batch": (
        "app.training.run_callbacks.step_keys.StepKeys.on_train_batch_start",
        "args[0].global_step == $step - 1",
    ),
    "read": ("app.training.LanguageModelModule.training_step", "True"),
    "validation": (
        "app.training.LanguageModelModule.validation_step",
        "self.trainer.global_step == $step and args[1] == 2",
    ),
    "validation end": (
        "app.training.LanguageModelModule.on_validation_epoch_end",
        "self.trainer.global_step == $step",
    ),
    "save": (
        "app.training.run_callbacks.retention.VerifiedCheckpointIO.save_checkpoint",
        "args[1].name == 'resume-%06d.ckpt' % $step",
    ),
    "saved": ("app.training.run_callbacks.retention.LatestCheckpoints.forget", "args[0] == $step"),
    "setup": ("app.training.LanguageModelModule.setup", "True"),
    "optimizer": ("app.training.LanguageModelModule.configure_optimizers", "True"),
    "stage": ("lightning.pytorch.Trainer._run_stage", "True"),
    "start": ("app.training.run_callbacks.status_file.StatusFile.on_train_start", "True"),
    "model": ("app.training.command_line.RunCLI.build_model", "True"),
    "summary": ("app.training.run_callbacks.summary.RunSummary.on_train_end", "True"),
    "end": ("app.training.session.Session.print_end", "True"),
}

_AT = Template("""
import importlib, os, signal, sys
import torch
def _put():
    module, owner, name = "$target".rsplit(".", 2)
    owner = getattr(importlib.import_module(module), owner)
    original = getattr(owner, name)
    calls = 0
    def faulty(self, *args, **kwargs):
        nonlocal calls
        if $condition:
            calls += 1
            if calls in ($calls) or not ($calls):
                $action
        return original(self, *args, **kwargs)
    setattr(owner, name, faulty)
_put()
""")


def at(place: str, action: str, step: int = 0, calls: tuple[int, ...] = (1,)) -> str:
    """Does something at a place in the run, before what happens there.

    Args:
        place: one of :data:`PLACES`.
        action: a Python statement; ``self`` and ``args`` are those of the hook.
        step: at which optimizer step; not every place has one.
        calls: at which of the calls that the place allows, counted from 1; none for all of them.
    """
    target, condition = PLACES[place]
    return _AT.substitute(
        target=target,
        condition=Template(condition).substitute(step=step),
        calls="".join(f"{call}, " for call in calls),
        action=action,
    )


def kill_at(place: str, step: int = 0, calls: tuple[int, ...] = (1,)) -> str:
    """Dies at a place as by ``kill -9``."""
    return at(place, "os.kill(os.getpid(), signal.SIGKILL)", step, calls)


def signal_at(place: str, signum: int, step: int = 0, group: bool = False) -> str:
    """Sends itself, or itself and all its workers, a signal at a place."""
    target = "os.killpg(os.getpgid(0)" if group else "os.kill(os.getpid()"
    return at(place, f"{target}, {int(signum)})", step)


def replaced(target: str, value: Any) -> str:
    """Replaces ``module.name`` or ``module.Class.name`` by the value of a Python expression; ``original`` is it."""
    return f"""
import importlib, operator
def _replace(path):
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
            break
        except ImportError:
            continue
    for part in parts[length:-1]:
        owner = getattr(owner, part)
    original = getattr(owner, parts[-1])
    setattr(owner, parts[-1], ({value}))
_replace("{target}")
"""

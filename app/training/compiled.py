"""``torch.compile`` of a network's training steps, in place: names of parameters and checkpoints stay as they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from app.models.operators import PASSED
from app.run.errors import ConfigurationError, words_of
from app.training import passed
from app.training.options.run import CompileMode

#: names in the table of paths that have passed
PATHS: dict[CompileMode, str] = {"blocks": "compiled_blocks", "full": "compiled"}
#: modes by those names
MODES: dict[str, CompileMode] = {path: mode for mode, path in PATHS.items()}


def compile_in_place(network: nn.Module, mode: CompileMode) -> None:
    """Lets ``torch.compile`` have each block of a network, or all of it.

    Args:
        network: with or without ``blocks``.
        mode: ``blocks``, of which a network without has itself as the only one, or ``full``.
    """
    torch._dynamo.reset()  # else what was compiled of other networks counts as recompiling this one
    for module in getattr(network, "blocks", [network]) if mode == "blocks" else [network]:
        module.compile(dynamic=False)


def require_compiler(device: torch.device) -> None:
    """Refuses before the first step what could not be compiled in it.

    Raises:
        ConfigurationError: there is no compiler for this device.
    """
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ConfigurationError(
                "compile: needs Triton for this GPU, and there is none; `pip install triton`, or leave it out"
            )
        return
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError) as error:
        raise ConfigurationError(
            "compile: needs a C++ compiler, and there is none; install g++ or name one by the environment variable "
            "CXX, or leave it out"
        ) from error


def has_passed(network: nn.Module, device: torch.device, mode: CompileMode) -> bool:
    """Whether ``app bench --check`` has found such a network's compiled steps right, on such a device.

    Args:
        network: any.
        device: where it computes.
        mode: ``blocks`` or ``full``.
    """
    here = passed.read(PASSED).get(passed.torch_version(), {}).get(passed.family(device), {})
    return f"{type(network).__module__}.{type(network).__qualname__}" in here.get(PATHS[mode], ())


class Compiled:
    """A network whose forward passes in training are compiled, and no others.

    Evaluation, generation and watchers call it with ever other shapes and modes, each of which would be compiled anew;
    they compute eagerly.

    Args:
        network: to compile, in place.
        mode: ``blocks`` or ``full``.
        is_reproducible: whether equal runs have to end in equal bits, so that no kernel may be chosen by timing.
    """

    def __init__(self, network: nn.Module, mode: CompileMode, is_reproducible: bool):
        import torch._inductor.config as inductor

        inductor.deterministic = is_reproducible
        compile_in_place(network, mode)
        torch.compiler.set_stance("force_eager")

    @contextmanager
    def step(self) -> Iterator[None]:
        """For the time of a ``with`` block, calls of the network are compiled.

        Raises:
            ConfigurationError: the compiler has failed.
        """
        from torch._dynamo.exc import TorchDynamoException

        try:
            with torch.compiler.set_stance("default"):
                yield
        except TorchDynamoException as error:
            cause: Any = error.__cause__ or error
            raise ConfigurationError(
                f"compile: torch.compile failed: {words_of(cause)}; leave it out, or try the other of blocks and full"
            ) from error

    def release(self) -> None:
        """From now on everything is compiled that is asked to be."""
        torch.compiler.set_stance("default")

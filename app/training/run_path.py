"""The path of a run: by which of several ways, whose results differ by rounding, its steps are computed.

Every part is a table by device and shape or was asked for, none of it is timed: at one place equal runs take equal
paths. It stands in checkpoints and in ``run.json``, and a resumed run keeps it at an equal place. What decides
the blocks of a kernel is code, so that it is told apart by a digest.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend

from app.models import LanguageModel, operators
from app.models.attention import SoftmaxAttention
from app.training.command_line import RunCLI
from app.training.compiled import PATHS, has_passed, require_compiler
from app.training.options.run import CompileMode
from app.training.passed import family, torch_version

#: tokens of a window from which cuDNN's attention is the faster one (one H200, torch 2.11, head width 64, bf16, forward
#: and backward: 0.38 against 0.52 ms at 16 x 8 x 1024, 0.290 against 0.277 at 64 x 6 x 256); never where the run has to
#: be reproducible, for there PyTorch does not offer it
FROM_WHICH_CUDNN = 1024
_BACKENDS = {
    int(value): name.partition("_")[0].lower()  # type: ignore[call-overload]
    for name, value in SDPBackend.__members__.items()
}
#: parts of a path that an option decides, where nothing speaks against it
OPTIONS = {"path.steps": "graph", "path.compile": "compile"}
#: the part of a path that has no part in the bits
WITHOUT_BITS = {"steps": ""}


def take(
    cli: RunCLI,
    network: LanguageModel,
    device: torch.device,
    block_size: int,
    kept: Mapping[str, Any] | None,
    is_elsewhere: bool,
    says_compile: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Chooses the path of a launch, for this whole process, and says which it is.

    Args:
        cli: the configuration.
        network: of the run.
        device: where it computes.
        block_size: T.
        kept: the path of the checkpoint that the run goes on from; None without.
        is_elsewhere: whether that was written at another place, whose path is not kept.
        says_compile: whether this launch says itself what is compiled.

    Returns:
        The path, in plain values, and what a person should know of it. ``steps``: ``graph`` or ``eager``; ``compile``;
        ``attention``: None without softmax attention; ``operators``: by name; ``kernels``: a digest of their code.

    Raises:
        ConfigurationError: what is asked for cannot be compiled.
    """
    mode: CompileMode = cli.config["compile"]
    notes = []
    if mode != "none":
        is_right = has_passed(network, device, mode)
        if not is_right and is_elsewhere and not says_compile:
            notes.append(
                f"the run compiled elsewhere ({mode}), which nobody has found right here: its steps are not compiled; "
                "--compile says otherwise"
            )
            mode = "none"
        else:
            require_compiler(device)
            notes += (
                []
                if is_right
                else [
                    f"compile: app bench --check has not found {type(network).__name__} right with torch "
                    f"{torch_version()} on {family(device)}; hold its loss against that of --compile none"
                ]
            )
    if is_elsewhere:
        kept = None
    _keep(kept or {}, block_size)
    is_half = "bf16" in str(cli.config["trainer"]["precision"])
    forms = operators.taken(network, device)
    path = {
        "steps": "graph" if cli.config["graph"] and device.type == "cuda" else "eager",
        "compile": mode,
        "attention": attention(network, device, torch.bfloat16 if is_half else torch.float32, block_size),
        "operators": dict(forms),
        "kernels": operators.code(forms),
    }
    if kept is not None and not operators.is_form_said():
        usual = operators.taken(network, device, is_kept=False)
        others = {name: form for name, form in forms.items() if form != usual[name]}
        if others:
            named = "; ".join(f"{form} {' '.join(names)}" for form, names in _by_form(others))
            notes.append(
                f"operators compute as in the checkpoint: {named}; APP_OP_FORM= lets this place choose"
            )
    return path, notes


def retake(path: Mapping[str, Any]) -> CompileMode:
    """Lets this process compute by the path of a launch, as it recorded it; a form that is said here goes before.

    Args:
        path: of that launch; empty for the usual forms.

    Returns:
        What it compiled.
    """
    _keep(path)
    return next((mode for mode in PATHS if mode == path.get("compile")), "none")


def _keep(path: Mapping[str, Any], block_size: int = 0) -> None:
    found = path.get("operators")
    forms = found if isinstance(found, dict) and not operators.is_form_said() else {}
    forms = {name: form for name, form in forms.items() if form in operators.FORMS}
    # A kernel that has been edited is not the one that the run began with, and has its checks before it.
    is_same = path.get("kernels") == operators.code(forms)
    operators.keep({name: form for name, form in forms.items() if is_same or form != "triton"})
    choose_attention(block_size, path.get("attention"))


def choose_attention(block_size: int, kept: str | None = None) -> None:
    """Lets PyTorch take cuDNN for softmax attention, or not, for this whole process.

    Args:
        block_size: T.
        kept: the backend of a launch before; None to choose by T.
    """
    torch.backends.cuda.enable_cudnn_sdp(block_size >= FROM_WHICH_CUDNN if kept is None else kept == "cudnn")


def differs(path: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether two paths may lead to other bits."""
    return {**path, **WITHOUT_BITS} != {**before, **WITHOUT_BITS}


def attention(network: nn.Module, device: torch.device, dtype: torch.dtype, block_size: int) -> str | None:
    """Which of PyTorch's backends computes softmax attention in training; None in a network without.

    Args:
        network: in training.
        device: where it computes.
        dtype: of queries, keys and values.
        block_size: T.
    """
    if not any(isinstance(part, SoftmaxAttention) for part in network.modules()):
        return None
    options = network.description()["init_args"] if isinstance(network, LanguageModel) else {}
    width, n_heads = options.get("d_model"), options.get("n_heads")
    head = width // n_heads if isinstance(width, int) and isinstance(n_heads, int) else 64
    q = torch.empty(1, 1, block_size, head, dtype=dtype, device=device, requires_grad=True)
    dropout = float(options.get("dropout") or 0.0)
    return _BACKENDS[torch._fused_sdp_choice(q, q, q, None, dropout, True)]


def describe(path: Mapping[str, Any]) -> str:
    """On one line: steps, compilation, attention, and the operators by form."""
    parts = [f"{path['steps']} steps" if path["steps"] == "eager" else "steps from a graph"]
    if path["compile"] != "none":
        parts.append({"blocks": "each block compiled", "full": "the network compiled"}[path["compile"]])
    if path["attention"] is not None:
        parts.append(f"{path['attention']} attention")
    by_form = _by_form(path["operators"])
    if by_form:
        most, *others = by_form
        rest = "".join(f", {form} {' '.join(names)}" for form, names in others)
        parts.append(f"{most[0]} operators{rest}")
    return ", ".join(parts)


def _by_form(forms: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Operators by form, that of most of them first."""
    found: dict[str, list[str]] = {}
    for name, form in forms.items():
        found.setdefault(form, []).append(name)
    return sorted(found.items(), key=lambda entry: -len(entry[1]))

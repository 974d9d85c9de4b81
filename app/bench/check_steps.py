"""The paths of a network's step against the eager one, and that one against itself.

Nothing is compared with a stored value. A step made twice from one state, and one made from a graph, have to have the
same bits. A compiled one adds up in another order: its loss and each parameter's gradient are compared in fp32.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from app.bench.parity import GRADIENT, OUTPUT, exact_products, relative_error
from app.bench.paths import StepPath
from app.bench.report import Finding
from app.bench.steps import Batch, Subject, gradients
from app.bench.trainers import bare_trainer, loader, silent
from app.run.errors import words_of
from app.training.compiled import MODES, compile_in_place
from app.training.language_model import LanguageModelModule
from app.training.run_callbacks.graphed_steps import GraphedSteps
from app.training.run_callbacks.step_keys import StepKeys

#: tokens of the steps that are made twice
TOKENS = (2_048, 16_384, 65_536)
QUICK_TOKENS = (256,)
#: steps of the run that is made with graphs and without
GRAPHED_STEPS = 12
SEED = 11
#: batches that are tried where a decision of the network flips
MAX_TRIES = 5
#: a gradient this small beside that of the whole network is rounding
NOTHING = 1e-6


def check_subject(
    subject: Subject, paths: Sequence[StepPath], tokens: Sequence[int] = TOKENS
) -> Iterator[Finding]:
    """Each path of a network's step.

    Args:
        subject: the network.
        paths: ``eager`` makes a step twice from one state; the others stand beside it.
        tokens: of each step that is made twice; graphed and compiled steps have the first number of them.
    """
    checks: dict[StepPath, Callable[[Subject, int], Finding]] = {
        "eager": eager,
        "graphed": graphed,
        "compiled_blocks": lambda subject, n: compiled(subject, n, "compiled_blocks"),
        "compiled": lambda subject, n: compiled(subject, n, "compiled"),
    }
    for path in paths:
        for n_tokens in tokens if path == "eager" else tokens[:1]:
            if path == "graphed" and subject.device.type != "cuda":
                yield _finding(subject, path, n_tokens, skipped="graphs need a GPU")
                continue
            try:
                yield checks[path](subject, n_tokens)
            except Exception as error:  # whatever a path raises, or its compiler, is the finding
                yield _finding(subject, path, n_tokens, problem=words_of(error))


def eager(subject: Subject, n_tokens: int) -> Finding:
    """One step twice from one state: loss and every gradient have the same bits."""
    network, batch = subject.module().network.train(), _batch(subject, n_tokens)
    first, _ = gradients(subject, network, batch)
    second, _ = gradients(subject, network, batch)
    return _finding(subject, "eager", n_tokens, _differences(first, second))


def graphed(subject: Subject, n_tokens: int, capturing: type[GraphedSteps] = GraphedSteps) -> Finding:
    """A run of a few steps with graphs and without: weights, buffers and last gradients have the same bits.

    Args:
        subject: the network.
        n_tokens: of each step.
        capturing: lets a training capture its steps.
    """
    callback = capturing()
    plain = _trained(subject, n_tokens, [])
    ours = _trained(subject, n_tokens, [callback])
    if callback.graphs is None:
        return _finding(subject, "graphed", n_tokens, skipped="graphs need a GPU")
    if callback.graphs.objection:
        return _finding(subject, "graphed", n_tokens, problem=callback.graphs.objection)
    if callback.graphs.n_replays == 0:
        return _finding(subject, "graphed", n_tokens, problem="no step was made from a graph")
    return _finding(subject, "graphed", n_tokens, _differences(_everything(plain), _everything(ours)))


def compiled(subject: Subject, n_tokens: int, path: StepPath) -> Finding:
    """A step by ``torch.compile`` beside the eager one in fp32: loss and each parameter's gradient.

    Where a decision of the network (a route, a bank) flips by rounding, the step is counted and the next batch is
    compared in its place.
    """
    exact = Subject(subject.name, subject.device, "32-true", subject.sizes, subject.trusted)
    network = exact.module().network.train()
    ours = copy.deepcopy(network)
    compile_in_place(ours, MODES[path])
    subject.network_class = exact.network_class
    n_flips = 0
    with _one_stream_of_random_numbers(), exact_products():
        for number in range(MAX_TRIES):
            batch = _batch(exact, n_tokens, seed=number)
            expected, record = gradients(exact, network, batch, seed=number)
            found, output = gradients(exact, ours, batch, seed=number)
            flips = _flips(record.routing, output.routing)
            if not flips:
                return _finding(subject, path, n_tokens, compared(found, expected), n_near_ties=n_flips)
            n_flips += flips
    problem = f"in each of {MAX_TRIES} steps decisions differ, {n_flips:,} together"
    return _finding(subject, path, n_tokens, problem=problem)


def compared(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Error and limit of the loss and of each gradient; a gradient that only one of them has is infinitely wrong.

    Args:
        found: by name, ``loss`` among them.
        expected: the same of the eager step.
    """
    whole = sum(float(g.double().square().sum()) for name, g in expected.items() if name != "loss") ** 0.5
    errors = {}
    for name in [*expected, *(name for name in found if name not in expected)]:
        limit = OUTPUT if name == "loss" else GRADIENT
        if name in found and name in expected:
            errors[name] = (relative_error(found[name], expected[name], NOTHING * whole), limit)
        else:
            errors[name] = (float("inf"), limit)
    return errors


def _finding(subject: Subject, path: StepPath, n_tokens: int, errors: Any = None, **about: Any) -> Finding:
    where = f"{n_tokens:,} tokens"
    network = subject.network_class
    return Finding(f"{subject.name} {path}", where, errors or {}, path=path, subject=network, **about)


def _batch(subject: Subject, n_tokens: int, seed: int = 0) -> Batch:
    return subject.batches(1, rows=max(1, n_tokens // subject.block_size), seed=seed)[0]


def _differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Relative error of each tensor, 0 where the bits are the same; the limit is 0."""
    assert first.keys() == second.keys()
    return {name: (_difference(second[name], tensor), 0.0) for name, tensor in first.items()}


def _difference(found: Tensor, expected: Tensor) -> float:
    raw = [x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (found, expected)]
    if torch.equal(*raw):
        return 0.0
    # Also where only the sign of a zero differs.
    return relative_error(found, expected) or float("inf")


def _trained(subject: Subject, n_tokens: int, callbacks: list[Callback]) -> LanguageModelModule:
    """The module after a few steps of the application's own loop."""
    module = subject.module()
    rows = max(1, n_tokens // subject.block_size)
    trainer = bare_trainer(subject, GRAPHED_STEPS, [StepKeys(SEED), *callbacks])
    with silent():
        trainer.fit(module, train_dataloaders=loader(subject.batches(rows=rows), GRAPHED_STEPS))
    return module.to(subject.device)


def _everything(module: LanguageModelModule) -> dict[str, Tensor]:
    gradients = {f"{name}'s gradient": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return dict(module.named_parameters()) | dict(module.named_buffers()) | gradients


@contextmanager
def _one_stream_of_random_numbers() -> Iterator[None]:
    """For the time of a ``with`` block, compiled code draws the numbers that eager code draws."""
    import torch._inductor.config as config

    before, config.fallback_random = config.fallback_random, True
    try:
        yield
    finally:
        config.fallback_random = before


def _flips(one: Any, other: Any) -> int:
    """Decisions that differ between two records of a network: entries of integer tensors and of masks."""
    pairs = zip(_decisions(one), _decisions(other), strict=True)
    return sum(int((left != right).sum()) for left, right in pairs)


def _decisions(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [] if value.is_floating_point() else [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, each.name) for each in fields(value)]
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in _decisions(each)]
    return []

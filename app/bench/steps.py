"""Training steps of a configuration's network without the framework: eager, from a graph, by reference operators."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from app.bench.paths import Precision
from app.models import LanguageModel
from app.ops import Form, use_form
from app.run import arguments
from app.run.configuration import find_config, read_config
from app.run.errors import ConfigurationError
from app.run.randomness import rekey, seed_initialisation
from app.training.command_line import RunCLI
from app.training.language_model import LanguageModelModule
from app.training.optim.optimizers import OPTIMIZERS
from app.training.step_graph import WARM_UP_STEPS, CudaGraph

#: symbols by text or tokenizer, where the text itself need not be here; the words are those of WikiText-2
VOCABULARIES = {
    "stdlib": 96,
    "tinyshakespeare": 65,
    "byte": 256,
    "char": 96,
    "word": 33_278,
    "bpe": 8_192,
    "gpt2": 50_257,
}
#: options of a class that is measured without a configuration
PLAIN_DATA = {"block_size": 128, "batch_size": 16}
#: batches that take turns
N_BATCHES = 8

Batch = tuple[Tensor, Tensor]


class Sizes(LightningDataModule):
    """What a network takes from data that need not be here.

    Args:
        vocab_size: V.
        block_size: T.
    """

    def __init__(self, vocab_size: int, block_size: int):
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, block_size


class Subject:
    """A network with its data's sizes, as a configuration describes it.

    Args:
        name: a shipped configuration, a configuration file, or a module's class.
        device: where it computes.
        precision: of the arithmetic.
        sizes: values in place of the configuration's: ``d_model``, ``n_layers`` and ``n_banks`` of the network,
            ``block_size`` and ``batch_size`` of the data.
        trusted: import prefixes of the user's own.

    Attributes:
        name: as given.
        cli: the configuration.
        block_size: T.
        batch_size: B.
        vocab_size: V.
        network_class: import path of the network, once one has been built.

    Raises:
        ConfigurationError: there is no such configuration or class, or it does not have such an option.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        precision: Precision = "32-true",
        sizes: Mapping[str, int] | None = None,
        trusted: Sequence[str] = (),
    ):
        self.name, self.device, self.precision = name, device, precision
        self.sizes, self.trusted = sizes or {}, trusted
        self.words = _words(name, device, precision, self.sizes, trusted)
        launch = arguments.read(self.words)
        self.cli = RunCLI(launch, [read_config(find_config(one)) for one in launch.configs])
        data = self.cli.config["data"].init_args.as_dict()
        if not PLAIN_DATA.keys() <= data.keys():
            raise ConfigurationError(
                f"{name}: its data has no {' and '.join(PLAIN_DATA)}, by which steps are measured; name a "
                "configuration whose data has"
            )
        self.block_size, self.batch_size = (int(data[option]) for option in PLAIN_DATA)
        self.vocab_size = _vocabulary(data)
        self.network_class = ""

    def size(self, option: str) -> int:
        """A size as the configuration has it.

        Raises:
            ConfigurationError: it has no such option.
        """
        section = self.cli.config["data" if option in PLAIN_DATA else "model"].init_args.as_dict()
        if not isinstance(section.get(option), int):
            raise ConfigurationError(f"{self.name}: has no {option} that could be swept; sweep another size")
        return int(section[option])

    @property
    def shape(self) -> dict[str, int]:
        """``B``, ``T`` and ``V``."""
        return {"B": self.batch_size, "T": self.block_size, "V": self.vocab_size}

    def module(self) -> LanguageModelModule:
        """The module with its first weights; the same ones every time."""
        seed_initialisation(self.cli.config["seed"])
        module = self.cli.build_model(Sizes(self.vocab_size, self.block_size))
        kind = type(module.network)
        self.network_class = f"{kind.__module__}.{kind.__qualname__}"
        return module.to(self.device)

    def batches(self, n: int = N_BATCHES, rows: int | None = None, seed: int = 0) -> list[Batch]:
        """Random tokens and the ones that follow them, each ``(B, T)``.

        Args:
            n: batches.
            rows: B; that of the configuration by default.
            seed: of the tokens.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (self.batch_size if rows is None else rows, self.block_size + 1)
        drawn = (torch.randint(0, self.vocab_size, shape, generator=generator) for _ in range(n))
        return [(x[:, :-1].to(self.device), x[:, 1:].to(self.device)) for x in drawn]

    def autocast(self) -> AbstractContextManager[Any]:
        """What a forward computes in."""
        if self.precision == "bf16-mixed":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def losses(self, network: LanguageModel, batch: Batch) -> tuple[Tensor, Any]:
        """The training loss ``()`` of a batch, and the network's output."""
        with self.autocast():
            output = network(*batch)
        assert output.loss is not None
        return output.loss + output.aux_loss, output

    def describe(self) -> str:
        """Sizes, on one line."""
        tokens = self.batch_size * self.block_size
        return (
            f"{self.name}: B {self.batch_size} x T {self.block_size} = {tokens:,} tokens, V {self.vocab_size}, "
            f"{self.precision}"
        )


class BareStep:
    """A whole optimizer step in a plain loop: what the application's step computes, and nothing around it.

    Forward, backward, clipping, optimizer and what the network moves behind it. No gate, no schedule, no record.

    Args:
        subject: whose network.
        batches: that take turns.
        form: by which operators are computed; the fastest one for the device by default.

    Raises:
        ConfigurationError: the optimizer is one of the user's own, whose step reads a flag on the host.
    """

    def __init__(self, subject: Subject, batches: Sequence[Batch], form: Form | None = None):
        self.subject, self.form = subject, form
        self.module = subject.module()
        self.network = self.module.network.train()
        if self.module.optimizer_name not in OPTIMIZERS:
            raise ConfigurationError(
                f"{subject.name}: {self.module.optimizer_name} has no bare step; choose one of {', '.join(OPTIMIZERS)}"
            )
        self.batches = batches
        self._optimizer = self.module.make_optimizer()
        self._parameters = [p for p in self.network.parameters() if p.requires_grad]
        self._n_steps = 0
        self._graph: CudaGraph | None = None
        self._inputs = [tensor.clone() for tensor in batches[0]]

    def eager(self, number: int) -> None:
        """Makes a step."""
        self._begin()
        self._compute(self.batches[number % len(self.batches)], is_captured=False)

    def graphed(self, number: int) -> None:
        """Makes a step from a graph, which the first call captures. Needs a GPU."""
        if self._graph is None:
            for warm_up in range(WARM_UP_STEPS):
                self.eager(warm_up)
            torch.cuda.synchronize(self.subject.device)
            batch = (self._inputs[0], self._inputs[1])
            self._begin()
            self._graph = CudaGraph(lambda outside: self._compute(batch, is_captured=True), self._parameters)
        else:
            self._begin()
        for memory, tensor in zip(self._inputs, self.batches[number % len(self.batches)], strict=True):
            memory.copy_(tensor)
        self._graph.replay()
        if not self.network.can_capture_after_step:
            self._after_step()

    def _begin(self) -> None:
        self._n_steps += 1
        self.module.numbers.set(self._n_steps, self._optimizer)

    def _compute(self, batch: Batch, is_captured: bool) -> dict[str, Any]:
        self._optimizer.zero_grad()
        with use_form(self.form) if self.form else nullcontext():
            loss, _ = self.subject.losses(self.network, batch)
            loss.backward()
        limit = self.module.gradient_clip or float("inf")
        torch.nn.utils.clip_grad_norm_(self._parameters, limit, foreach=True)
        with self.module.numbers.used_by(self._optimizer, is_captured):
            self._optimizer.step()
        if not is_captured or self.network.can_capture_after_step:
            self._after_step()
        return {"loss": loss}

    @torch.no_grad()
    def _after_step(self) -> None:
        self.network.after_optimizer_step(self._n_steps)
        for total in self.network.step_sums():
            total.zero_()


def gradients(
    subject: Subject, network: LanguageModel, batch: Batch, seed: int = 0
) -> tuple[dict[str, Tensor], Any]:
    """Loss and every gradient of one batch, and the network's output; the network is left as it was.

    Args:
        subject: whose network.
        network: in any mode.
        batch: ``(idx, targets)``.
        seed: of dropout and noise.
    """
    with as_before(network):
        network.zero_grad()
        rekey(seed, 0, 0, 0)
        loss, output = subject.losses(network, batch)
        loss.backward()
        found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        network.zero_grad()
    return {"loss": loss.detach().clone()} | found, output


@contextmanager
def as_before(network: LanguageModel) -> Iterator[None]:
    """What forwards move without a gradient is afterwards what it was before a ``with`` block."""
    moving = [*network.buffers(), *network.running_state(), *network.step_sums()]
    before = [state.detach().clone() for state in moving]
    try:
        yield
    finally:
        with torch.no_grad():
            for state, old in zip(moving, before, strict=True):
                state.copy_(old)


def _is_class(name: str) -> bool:
    """Whether a name can be a module's class, and not a configuration."""
    return name.rpartition(".")[2][:1].isupper() and not name.endswith((".yaml", ".yml", ".json"))


def _words(
    name: str, device: torch.device, precision: Precision, sizes: Mapping[str, int], trusted: Sequence[str]
) -> list[str]:
    """The command line of ``app fit`` that would train what is measured."""
    options: dict[str, Any] = {
        "trainer.accelerator": "gpu" if device.type == "cuda" else "cpu",
        "trainer.devices": f"[{device.index or 0}]" if device.type == "cuda" else 1,
        "trainer.strategy": "auto",
        "trainer.precision": precision,
    }
    if _is_class(name):
        options = {"model": name, "data": "CharDataModule", "trainer.max_steps": 1000} | options
        sizes = PLAIN_DATA | dict(sizes)
        words = []
    else:
        words = ["--config", name]
    options |= {f"{'data' if x in PLAIN_DATA else 'model'}.{x}": value for x, value in sizes.items()}
    words += [word for prefix in trusted for word in ("--trust_imports", prefix)]
    return words + [word for option, value in options.items() for word in (f"--{option}", str(value))]


def _vocabulary(data: Mapping[str, Any]) -> int:
    """Number of symbols of a data set that need not be here."""
    known = VOCABULARIES.get(data.get("tokenizer") or data.get("source") or "", VOCABULARIES["stdlib"])
    return int(data.get("max_vocab_size") or known)

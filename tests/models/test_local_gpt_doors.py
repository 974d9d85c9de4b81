"""What other parts ask of a LocalGPT: to describe itself, to go on from other weights, to say what a token costs."""

from dataclasses import asdict
from typing import Any

import pytest
import torch

from app.models.equilibrium import EquilibriumLM
from app.models.gpt import GPT
from app.models.local_gpt import LocalGPT
from tests.models.test_local_gpt import VOCAB, local_gpt


class Renamed(LocalGPT):
    """Built like its base."""


class WithMore(LocalGPT):
    """One argument more."""

    def __init__(self, extra: int = 1, **fields: Any):
        super().__init__(**fields)
        self.extra = extra


class Narrow(LocalGPT):
    """Arguments of its own."""

    def __init__(self, width: int = 8):
        super().__init__(d_model=width, n_heads=2, n_layers=1, vocab_size=VOCAB)


@pytest.mark.parametrize(
    "network",
    [Renamed(d_model=12, n_layers=1), WithMore(extra=3, d_model=12, n_layers=1), Narrow(6)],
    ids=type,
)
def test_subclasses_describe_themselves(network: LocalGPT) -> None:
    description = network.description()
    assert all(isinstance(value, int | float | str | bool) for value in description["init_args"].values())
    assert description["class_path"].endswith(f".{type(network).__name__}")
    twin = type(network)(**description["init_args"])
    assert twin.config == network.config
    assert getattr(twin, "extra", None) == getattr(network, "extra", None)


def test_a_description_from_before_an_argument_was_there_is_completed() -> None:
    for network, later in (
        (LocalGPT(d_model=12, n_layers=1), "dfa_propagate"),
        (WithMore(extra=3, d_model=12, n_layers=1), "extra"),
        (Narrow(6), "width"),
        (EquilibriumLM(VOCAB), "target_fractions"),
    ):
        given = network.description()["init_args"]
        assert network.with_defaults(given) | given == network.with_defaults(given)
        without = {name: value for name, value in given.items() if name != later}
        default = type(network)(**{n: v for n, v in given.items() if n in ("vocab_size",)})
        assert network.with_defaults(without)[later] == default.description()["init_args"][later]


@pytest.mark.parametrize("theirs", ["bp", "fa", "dfa", "sign_sym"])
@pytest.mark.parametrize("ours", ["bp", "fa", "dfa", "sign_sym"])
def test_a_network_goes_on_from_one_of_another_rule(ours: str, theirs: str) -> None:
    other = local_gpt(method=theirs, vocab_size=16)  # with which B and R of a square layer have one shape
    network = LocalGPT(**asdict(other.config) | {"method": ours, "seed": 5})
    own = {
        name: x.clone() for name, x in network.state_dict().items() if "feedback" in name or "scale" in name
    }
    network.load_state_dict(network.starting_weights(other.state_dict()))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name))
    for name, x in own.items():  # of the same rule, feedback is that with which the weights have learnt
        assert torch.equal(network.state_dict()[name], other.state_dict()[name] if ours == theirs else x), (
            name
        )


def test_operations_of_a_token() -> None:
    def flops(**options: Any) -> float:
        return LocalGPT(n_layers=3, d_model=12, n_heads=2, vocab_size=7, **options).flops_per_token(9)

    weights, scores, head = 3 * 12 * 12**2, 3 * 10 * 12, 7 * 12
    assert flops() == GPT(7, 9, 3, 2, 12).flops_per_token(9) == 6 * (weights + scores + head)
    assert flops(freeze_emb=True) == flops()
    assert flops(freeze_blocks=True) == 4 * weights + 6 * (scores + head)
    assert flops(freeze_blocks=True, freeze_emb=True) == 2 * (weights + scores) + 6 * head


def test_the_number_of_parameters() -> None:
    network = LocalGPT(n_layers=2, d_model=12, n_heads=2, vocab_size=7, block_size=5, freeze_emb=True)
    norms, blocks, embeddings, head = 5 * 2 * 12, 2 * 12 * 12**2, (7 + 5) * 12, 7 * 12
    assert network.num_params() == norms + blocks + embeddings + head
    counts = network.parameter_counts()
    assert network.num_params() == counts["trainable"] + counts["frozen"]

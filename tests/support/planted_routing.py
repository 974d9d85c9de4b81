"""Hand-built networks whose choices are known to matter, or not to.

The text is a chain: each symbol has one follower, which comes in most cases, else any symbol does. One pathway of one
layer knows the followers, one block of symbols a bank; its router names the bank of the symbol's block. Where the route
*decides*, a bank knows the followers of its own block alone and is wrong of the others, to some degree. Else every bank
knows all of them, and banks differ by noise that costs less than the margin in the usual window (root mean square).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from app.analysis.routing.exchange import exchange, places
from app.analysis.routing.routers import Router, Windows, routers
from app.models.tilelli import TilelliLM

T = 12
FOLLOWS = 0.7


class Planted(NamedTuple):
    """A network and what is known of it.

    Attributes:
        network: in evaluation mode.
        decides: name of the router that decides; empty where none does.
        follower: ``(V,)`` of each symbol.
    """

    network: TilelliLM
    decides: str
    follower: np.ndarray

    def windows(self, n: int, seed: int) -> Windows:
        """``n`` windows of its text."""
        generator = np.random.default_rng([seed, n])
        V = len(self.follower)
        text = np.empty((n, T + 1), dtype=np.int64)
        text[:, 0] = generator.integers(V, size=n)
        for t in range(T):
            any_symbol = generator.integers(V, size=n)
            follows = generator.random(n) < FOLLOWS
            text[:, t + 1] = np.where(follows, self.follower[text[:, t]], any_symbol)
        tokens = torch.from_numpy(text)
        return Windows(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), {})


@torch.no_grad()
def planted(number: int, decides: bool, margin: float) -> Planted:
    """One network of each number; sizes, the pathway, its layer and the gate are drawn.

    Args:
        number: seed of all that is drawn.
        decides: whether the route decides.
        margin: that the noise between banks stays below, where it does not.
    """
    generator = np.random.default_rng([number, decides])
    torch.manual_seed(number)
    n_banks, n_layers = int(generator.integers(2, 4)), int(generator.integers(1, 3))
    V = n_banks * int(generator.integers(2, 5))
    pathways, layer = int(generator.choice([3, 5])), int(generator.integers(n_layers))
    path = "sparse" if pathways == 3 else str(generator.choice(["dense", "sparse"]))
    of_five = {"dense_expand": 1, "wide_kernel_size": 5} if pathways == 5 else {}
    network = TilelliLM(
        V, d_model=2 * V, n_layers=n_layers, n_banks=n_banks, pathways=pathways, quantize=False, d_head=V, top_k=1,
        kernel_size=3, bank_gate=str(generator.choice(["sum", "bank"])), **of_five,
    ).eval()  # fmt: skip
    follower = generator.permutation(V)
    block_of = generator.permutation(np.arange(V) % n_banks)
    _copy_banks(network)
    network.tok_emb.weight.copy_(torch.cat([torch.eye(V), torch.zeros(V, V)], 1))
    network.head.weight.copy_(torch.cat([torch.zeros(V, V), torch.eye(V)], 1))
    block = network.tilelli_blocks[layer]
    place = block.pathway_names.index(path)
    for bank in range(n_banks):
        block.router.weight[place * n_banks + bank, :V] = torch.from_numpy(block_of == bank).float()
    strength = float(generator.uniform(0.3, 1.0)) if decides else 0.0
    for bank in range(n_banks):
        follows = torch.zeros(2 * V, 2 * V)
        for symbol in range(V):
            wrong = (follower[symbol] + int(generator.integers(1, V))) % V
            share = strength if block_of[symbol] != bank else 0.0
            follows[V + follower[symbol], symbol] += (1 - share) / V**0.5
            follows[V + wrong, symbol] += share / V**0.5
        if path == "dense":
            block.dense.up.weight[bank] = torch.eye(2 * V)
            block.dense.down.weight[bank] = follows
        else:
            first = torch.eye(V, 2 * V)
            block.sparse.query.weight[bank], block.sparse.key.weight[bank] = first, first
            block.sparse.value.weight[bank] = follows
    found = routers(network)
    name = next(router.name for router in found if (router.layer, router.path) == (layer, path))
    made = Planted(network, name if decides else "", follower)
    if not decides:
        _add_noise(made, found, margin, number)
    return made


def worth(made: Planted, router: Router, n: int = 60, seed: int = 999) -> float:
    """What the choice is worth: of every token of a text that no verdict sees."""
    windows = made.windows(n, seed)
    return float(np.mean(exchange(made.network, router, windows, places(windows, T, 0), 512)))


def _banked(network: TilelliLM) -> list[nn.Parameter]:
    """All parameters that have a part for each bank."""
    parts = [getattr(block, name) for block in network.tilelli_blocks for name in block.pathway_names]
    return [parameter for part in parts for parameter in part.parameters()]


def _copy_banks(network: TilelliLM) -> None:
    """Small weights, the same in every bank."""
    for parameter in _banked(network):
        parameter.copy_((0.1 * torch.randn_like(parameter[:1])).expand_as(parameter))


def _add_noise(made: Planted, of: list[Router], margin: float, number: int) -> None:
    """Noise on every bank, as much as costs less than the margin in the usual window, at every router."""
    clean = [parameter.clone() for parameter in _banked(made.network)]
    torch.manual_seed(number + 1)
    noise = [torch.randn_like(parameter) for parameter in clean]
    windows, scale = made.windows(20, 5), 0.1
    at = places(windows, T, 0)
    while True:
        for parameter, before, drawn in zip(_banked(made.network), clean, noise, strict=True):
            parameter.copy_(before + scale * drawn)
        costs = [exchange(made.network, router, windows, at, 512) for router in of]
        if max(float(np.square(of_router).mean() ** 0.5) for of_router in costs) < margin:
            return
        scale /= 2

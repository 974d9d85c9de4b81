"""A GPT whose attention, in chosen layers, is its top key plus a low-rank residual.

Shape suffixes: B batch, T sequence, H heads, d head width, r rank.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from app.models.crystal.attention import CrystalAttention, CrystalRecord
from app.models.crystal.basis import ResidualBasis, ResidualMoments, effective_dimension
from app.models.gpt import GPT
from app.ops.crystal_attention import decompose_attention
from app.records import Axis, LanguageModelOutput, Measure

BASIS = ".attn.core.basis"


class CrystalGPT(GPT):
    """:class:`app.models.gpt.GPT` with crystallised attention; all other weights have the same names.

    With the same seed the shared weights start equal to those of a GPT: the bases have a generator of their
    own.

    Args:
        vocab_size: number of token numbers.
        block_size: longest context.
        n_layers: number of blocks.
        n_heads: attention heads; divides ``d_model``.
        d_model: width.
        dropout: probability, as in GPT; of the attention weights behind v*, which itself is never dropped.
        bias: whether the linear layers of the blocks have one.
        tie_weights: whether the output projection is the token embedding.
        crystal_layers: blocks, from 0, whose attention is crystallised; None for all.
        mode: ``lowrank`` (v* plus the residual in r directions per head) or ``topk`` (softmax over the
            ``top_k`` largest scores).
        rank: r, from 1 to the head width (``lowrank``).
        top_k: keys that count, at least 1 (``topk``).
        learn_basis: whether the r directions train (``lowrank``); else they stay as they are.
        basis_seed: of the random orthonormal bases to start from (``lowrank``).

    Raises:
        ValueError: an argument is out of range; the message names every such argument.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layers: int,
        n_heads: int,
        d_model: int,
        dropout: float = 0.0,
        bias: bool = False,
        tie_weights: bool = True,
        crystal_layers: Sequence[int] | None = None,
        mode: Literal["topk", "lowrank"] = "lowrank",
        rank: int = 4,
        top_k: int = 2,
        learn_basis: bool = False,
        basis_seed: int = 42,
    ):
        problems = []
        layers = list(range(max(0, n_layers)) if crystal_layers is None else crystal_layers)
        if absent := [layer for layer in layers if not 0 <= layer < n_layers]:
            problems.append(
                f"crystal_layers = {layers}: there is no block {absent[0]}; must lie in 0 … {n_layers - 1}"
            )
        if len(set(layers)) < len(layers):
            problems.append(f"crystal_layers = {layers}: must name each block once")
        if mode not in ("topk", "lowrank"):
            problems.append(f"mode = {mode!r}: must be topk or lowrank")
        if mode == "lowrank" and n_heads > 0 and not 1 <= rank <= max(1, d_model // n_heads):
            problems.append(
                f"rank = {rank}: must lie in 1 … {d_model // n_heads}, the head width d_model / n_heads"
            )
        if mode == "topk" and top_k < 1:
            problems.append(f"top_k = {top_k}: must be at least 1")
        if basis_seed < 0:
            problems.append(f"basis_seed = {basis_seed}: must be at least 0")
        try:
            super().__init__(vocab_size, block_size, n_layers, n_heads, d_model, dropout, bias, tie_weights)
        except ValueError as error:
            raise ValueError("\n".join([*str(error).splitlines(), *problems])) from error
        if problems:
            raise ValueError("\n".join(problems))
        self.crystal_layers = tuple(sorted(layers))
        self._keeps_basis = False
        for layer in self.crystal_layers:
            attention: nn.Module = self.blocks[layer].attn  # type: ignore[assignment]
            attention.core = CrystalAttention(
                n_heads, d_model // n_heads, mode, rank, top_k, learn_basis, basis_seed, layer
            )

    def set_basis(self, basis: ResidualBasis) -> None:
        """Starts from calibrated modes, which weights taken from another run do not replace.

        Raises:
            ValueError: the basis lacks a layer, is of other heads, has fewer modes than this network's rank, or
                this network uses none.
        """
        cores = self._cores()
        for core in cores:
            if core.mode != "lowrank":
                raise ValueError(f"mode = {core.mode!r}: uses no basis")
            modes, ours = basis.of_layer(core.layer), core.basis
            if modes.shape[:2] != ours.shape[:2]:
                raise ValueError(
                    f"basis: is of {modes.shape[0]} heads of width {modes.shape[1]}, "
                    f"this network has {ours.shape[0]} of width {ours.shape[1]}"
                )
            if modes.shape[2] < core.rank:
                raise ValueError(
                    f"basis: has {modes.shape[2]} modes per head, this network uses {core.rank} of them"
                )
        for core in cores:
            core.set_basis(basis.of_layer(core.layer))
        self._keeps_basis = True

    def starting_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a GPT are completed by the bases of this network, whose own those of a file stay."""
        own = {name: x for name, x in self.state_dict().items() if name.endswith(BASIS)}
        others = {name: x for name, x in weights.items() if not name.endswith(BASIS)}
        theirs = {} if self._keeps_basis else {name: weights[name] for name in own if name in weights}
        return others | own | theirs

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """As in GPT, but for learnt bases: only their directions count, which decay would not change."""
        return super().is_matrix(name, parameter) and not name.endswith(BASIS)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """See :meth:`app.models.LanguageModel.forward`; in training, ``routing`` holds :class:`CrystalRecord` s."""
        output = super().forward(idx, targets)
        records = [core.take_record() for core in self._cores()]
        return output._replace(routing=[record for record in records if record is not None])

    def measures(self, output: LanguageModelOutput) -> Mapping[str, Measure]:
        """What the attention of the crystal layers looks like, on a few sequences of the batch.

        ``residual_r90`` (modes that hold 90 % of the residual's energy, in 1 … d), ``attention_entropy`` (of
        the softmax over all keys, nats) and ``top_share`` (its probability on the top key), each
        ``(layer, head)``, over all kept sequences of the step: the modes are those of the residuals together, the
        others are means. Computed from what :class:`CrystalRecord` s refer to, when asked; a step that nobody asks
        about costs nothing.
        """
        records: list[CrystalRecord] = output.routing
        if not records:
            return {}
        axes = (
            Axis("layer", tuple(str(record.layer) for record in records)),
            Axis("head"),
        )
        moments = ResidualMoments()
        entropy, share = [], []
        for record in records:
            q, k, v = (x.float() for x in record[1:])
            _, _, residual = decompose_attention(q, k, v)
            moments.add(record.layer, residual)
            p = _softmax(q, k)
            entropy.append(torch.special.entr(p).sum(-1).mean((0, 2)))
            share.append(p.amax(-1).mean((0, 2)))
        sums = torch.stack([moments.sums[record.layer] for record in records])
        return {
            "residual_r90": Measure(
                sums,
                axes,
                "level",
                reduce="sum",
                unit="modes",
                derive=effective_dimension,
                meaning="directions that hold 90 % of what attention adds to the value of its likeliest key",
            ),
            "attention_entropy": Measure(
                torch.stack(entropy),
                axes,
                "level",
                unit="nats",
                meaning="how widely a head spreads its attention over the keys; 0 where it looks at one alone",
            ),
            # A level: it is no share of anything that the heads would divide among themselves.
            "top_share": Measure(
                torch.stack(share),
                axes,
                "level",
                unit="probability",
                meaning="attention that goes to the likeliest key alone, mean over the tokens of a step",
            ),
        }

    def _cores(self) -> list[CrystalAttention]:
        return [self.blocks[layer].attn.core for layer in self.crystal_layers]  # type: ignore[union-attr, misc]


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    """Causal attention weights ``(b, H, T, T)``."""
    T = q.shape[-2]
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(future, float("-inf")).softmax(-1)

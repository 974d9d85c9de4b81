"""A GPT whose attention, in chosen layers, is its top key plus a low-rank residual.

Shape suffixes: B batch, T sequence, H heads, d head width, r rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from app.models.crystal.attention import CrystalAttention, CrystalRecord
from app.models.crystal.basis import ResidualBasis, ResidualMoments, effective_dimension
from app.models.gpt import GPT
from app.models.layers import modules_of
from app.ops.crystal_attention import decompose_attention
from app.options import Given, Needs, NonNegativeInt, PositiveInt
from app.records import Axis, LanguageModelOutput, Measure

BASIS = ".attn.core.basis"


class CrystalGPT(GPT):
    """:class:`app.models.gpt.GPT` with crystallised attention; all other weights have the same names.

    With the same seed the shared weights start equal to those of a GPT: the bases have a generator of their
    own.

    Args:
        crystal_layers: blocks, from 0, whose attention is crystallised; all of them by default.
        mode: ``lowrank`` (the top key's value v* plus the residual in ``rank`` directions per head) or ``topk``
            (softmax over the ``top_k`` largest scores).
        rank: directions per head, at most the head width d_model / n_heads.
        top_k: keys that count.
        learn_basis: whether the directions train; else they stay as they are.
        basis_seed: of the random orthonormal directions to start from.
        gpt: options of :class:`app.models.gpt.GPT`; dropout of the attention weights is behind v*, which itself is
            never dropped.

    Raises:
        ValueError: an argument is out of range; the message names every such argument.
    """

    def __init__(
        self,
        *,
        crystal_layers: Sequence[int] | None = None,
        mode: Literal["topk", "lowrank"] = "lowrank",
        rank: Annotated[PositiveInt, Needs(mode="lowrank")] = 4,
        top_k: Annotated[PositiveInt, Needs(mode="topk")] = 2,
        learn_basis: Annotated[bool, Needs(mode="lowrank")] = False,
        basis_seed: Annotated[NonNegativeInt, Needs(mode="lowrank")] = 42,
        **gpt: Any,
    ):
        super().__init__(**gpt)
        n_layers, n_heads, d_model = len(self.blocks), gpt["n_heads"], gpt["d_model"]
        self.crystal_layers = tuple(range(n_layers) if crystal_layers is None else sorted(crystal_layers))
        self.mode = mode
        self._keeps_basis = False
        for layer in self.crystal_layers:
            attention: nn.Module = self.blocks[layer].attn  # type: ignore[assignment]
            attention.core = CrystalAttention(
                n_heads, d_model // n_heads, mode, rank, top_k, learn_basis, basis_seed, layer
            )

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        layers = given.crystal_layers or ()
        if absent := [layer for layer in layers if not 0 <= layer < given.n_layers]:
            yield "crystal_layers", f"there is no block {absent[0]}; must lie in 0 … {given.n_layers - 1}"
        if len(set(layers)) < len(layers):
            yield "crystal_layers", "must name each block once"
        width = given.d_model // given.n_heads
        if given.mode == "lowrank" and given.rank > max(1, width):
            yield "rank", f"must be at most {width}, the head width d_model / n_heads"
        yield from GPT.conflicts(given)

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
        return modules_of(self.blocks, CrystalAttention)


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    """Causal attention weights ``(b, H, T, T)``."""
    T = q.shape[-2]
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(future, float("-inf")).softmax(-1)

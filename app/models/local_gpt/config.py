"""What a LocalGPT is made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from app import options
from app.models.feedback import FeedbackInit
from app.models.local_linear import Method
from app.options import (
    Given,
    Needs,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Within,
)

AttentionMode = Literal["sigmoid", "softmax"]
SigmoidBias = Literal["neg_log_n", "zero", "learned", "row"]
NormMode = Literal["bp", "ste", "center_scale", "projected"]


@dataclass(frozen=True)
class LocalGPTConfig:
    """Architecture and learning rule of a :class:`~app.models.local_gpt.LocalGPT`.

    Args:
        block_size: longest context, in tokens; taken from the data.
        vocab_size: number of tokens that there are; taken from the data.
        n_layers: transformer blocks.
        n_heads: attention heads per block; divides ``d_model``.
        d_model: width of the residual stream.
        dropout: on the embedding, the attention weights and each branch.
        bias: whether the linear layers have one (LayerNorms always have, the head never).
        attn_mode: ``softmax``, or ``sigmoid`` of score + b (Ramapuram et al. 2024), whose rows need not sum to 1.
        sigmoid_bias_mode: b is −ln(block_size) (``neg_log_n``), 0 (``zero``), a scalar parameter of each layer that
            starts at −ln(block_size) (``learned``), or −ln(i + 1) in row i, counted from 0 (``row``): then the
            weights of row i sum to (i+1)/(i+2) at the start, where ``neg_log_n`` leaves short contexts nearly off.
        method: rule of every linear layer, see :class:`app.models.local_linear.LocalLinear`.
        ste_sigmoid: the attention's sigmoid passes gradients straight through.
        ste_gelu: the MLP's GELU does.
        freeze_emb: both embeddings stay as they start.
        ln_mode: backward pass of the LayerNorms: exact (``bp``), straight through (``ste``), without the
            projection (``center_scale``), or the exact one written as a projection (``projected``).
        fuse_attn_local: softmax attention whose backward is the fused formula of :func:`softmax_value_mix`.
        mlp_topk: hidden activations kept per token; 0 keeps all.
        resid_topk: entries of the residual stream kept after each block; 0 keeps all.
        vq_codes: code directions that the stream is reduced to after each block; 0 for none.
        subspace_rank: rank of the fixed subspace that the stream is projected on after each block; 0 for none.
        fa_init_mode: how B is drawn, see :func:`app.models.feedback.feedback_matrix`.
        fa_sparse_k: entries per row of B with ``sparse``; 0 for max(1, in // 16).
        fa_grape: after each optimizer step every B but the head's moves towards the Jacobian that forward-mode probes
            show; for a linear layer this converges to B ∝ W, a sampled weight mirror (Akrout et al. 2019).
        fa_grape_n_probe: probes per layer and step.
        gated_blocks: learned scalars, 1 at the start, multiply each branch.
        dfa_propagate: with ``dfa``, embeddings, norms and gates learn by back-propagation (the original hybrid);
            without it ``∂L/∂x`` of every linear layer but the head is zero.
        dfa_derivative: with ``dfa``, the error ``e R`` of a layer is multiplied by the derivative of what follows it,
            as in Nøkland 2016 and Launay et al. 2020: that of the GELU and the mask of ``mlp_topk`` behind ``mlp.fc``,
            the mask of dropout behind ``attn.o_proj`` and ``mlp.proj``. Without it a unit learns that is saturated or
            that top-k or dropout have removed. ``q_proj``, ``k_proj`` and ``v_proj``, which no function of single
            units follows, learn from ``e R`` either way.
        fa_grape_lr: length of the step of B on the unit sphere.
        train_affine: whether gains and biases of the LayerNorms learn.
        freeze_blocks: only embeddings, final norm and head learn: the control that a local rule has to beat.
        vq_per_block: a codebook per block in place of one for all.
        seed: of the feedback matrices and probes.

    Raises:
        ValueError: naming every field outside its range.
    """

    block_size: PositiveInt = 256
    vocab_size: PositiveInt = 65
    n_layers: PositiveInt = 6
    n_heads: PositiveInt = 6
    d_model: PositiveInt = 384
    dropout: Probability = 0.2
    bias: bool = False
    attn_mode: AttentionMode = "sigmoid"
    sigmoid_bias_mode: Annotated[SigmoidBias, Needs(attn_mode="sigmoid")] = "neg_log_n"
    method: Method = "bp"
    ste_sigmoid: Annotated[bool, Needs(attn_mode="sigmoid")] = False
    ste_gelu: bool = False
    freeze_emb: bool = False
    ln_mode: NormMode = "bp"
    fuse_attn_local: bool = False
    mlp_topk: NonNegativeInt = 0
    resid_topk: NonNegativeInt = 0
    vq_codes: NonNegativeInt = 0
    subspace_rank: NonNegativeInt = 0
    fa_init_mode: Annotated[FeedbackInit, Needs(method="fa")] = "gaussian"
    fa_sparse_k: Annotated[NonNegativeInt, Needs(method="fa", fa_init_mode="sparse")] = 0
    fa_grape: Annotated[bool, Needs(method="fa")] = False
    fa_grape_n_probe: Annotated[PositiveInt, Needs(method="fa", fa_grape=True)] = 32
    gated_blocks: bool = False
    dfa_propagate: Annotated[bool, Needs(method="dfa")] = True
    dfa_derivative: Annotated[bool, Needs(method="dfa")] = False
    fa_grape_lr: Annotated[PositiveFloat, Needs(method="fa", fa_grape=True)] = 0.1
    train_affine: bool = True
    freeze_blocks: bool = False
    vq_per_block: Annotated[bool, Needs(vq_codes=Within("[1, inf)"))] = False
    seed: Annotated[NonNegativeInt, Needs(method=("fa", "dfa"))] = 0

    def __post_init__(self) -> None:
        options.check(type(self), vars(self))

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        if given.d_model % given.n_heads:
            yield "n_heads", f"must divide d_model = {given.d_model}"
        for name, width, what in (
            ("mlp_topk", 4 * given.d_model, "4 · d_model"),
            ("resid_topk", given.d_model, "d_model"),
            ("fa_sparse_k", given.d_model, "d_model"),
        ):
            if vars(given)[name] > width:
                yield name, f"must be at most {what} = {width}"
        if given.subspace_rank >= given.d_model:
            yield "subspace_rank", f"must be 0 (none) or below d_model = {given.d_model}"
        if given.fuse_attn_local and given.attn_mode == "sigmoid":
            yield "fuse_attn_local", "needs attn_mode: softmax, whose formula it is"
        if given.fuse_attn_local and given.dropout > 0:
            yield "fuse_attn_local", "needs dropout: 0, since no attention weight is formed to be dropped"

    @staticmethod
    def without_effect(given: Given) -> Iterator[tuple[str, str]]:
        is_cut = given.method == "dfa" and not given.dfa_propagate
        # Then nothing below the final norm wants a gradient.
        none_below = given.freeze_blocks and given.freeze_emb
        is_learned = given.sigmoid_bias_mode == "learned"
        stays = ", where a learned bias stays as it starts, that of neg_log_n,"
        equals_bp = (
            given.freeze_blocks and (not is_cut or none_below)
            if given.method == "dfa"
            else none_below and not given.train_affine
        )
        if given.method != "bp" and equals_bp:
            for name in ("method", "seed"):
                yield (
                    name,
                    "where nothing is trained that it would teach otherwise than back-propagation does",
                )
        if is_cut:
            nothing = "with dfa_propagate: false, which sends nothing to it"
            yield "ste_sigmoid", nothing
            if not given.dfa_derivative:
                yield "ste_gelu", nothing
            if is_learned:
                yield "sigmoid_bias_mode", f"with dfa_propagate: false{stays}"
        if none_below:
            for name in ("ste_sigmoid", "ste_gelu", "ln_mode", "dfa_propagate"):
                yield name, "with freeze_blocks and freeze_emb, where no gradient goes below the final norm"
        if given.freeze_blocks:
            yield "gated_blocks", "with freeze_blocks: the gates stay at 1"
            yield "dfa_derivative", "with freeze_blocks: no layer learns by dfa"
            if is_learned:
                yield "sigmoid_bias_mode", f"with freeze_blocks{stays}"
        if given.mlp_topk == 4 * given.d_model:
            yield "mlp_topk", "at 4 x d_model, which keeps every hidden unit"
        if given.resid_topk == given.d_model:
            yield "resid_topk", "at d_model, which keeps every entry"
        exact = "on the result: its formula gives the exact gradient, so the fast exact kernel computes it"
        if given.fuse_attn_local:
            yield "fuse_attn_local", exact
        if given.ln_mode == "projected":
            yield "ln_mode", exact

"""What a LocalGPT is made of."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from app.models.feedback import FeedbackInit
from app.models.local_linear import Method

AttentionMode = Literal["sigmoid", "softmax"]
SigmoidBias = Literal["neg_log_n", "zero", "learned", "row"]
NormMode = Literal["bp", "ste", "center_scale", "projected"]


@dataclass(frozen=True)
class LocalGPTConfig:
    """Architecture and learning rule of a :class:`~app.models.local_gpt.LocalGPT`.

    Attributes:
        block_size: longest context, in tokens.
        vocab_size: number of token numbers.
        n_layer: blocks.
        n_head: attention heads; divides ``n_embd``.
        n_embd: width of the residual stream.
        dropout: probability, on the embedding, the attention weights and each branch, in [0, 1).
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
        fa_grape: after each optimizer step B moves towards the Jacobian that forward-mode probes show; for a linear
            layer this converges to B ∝ W, a sampled weight mirror (Akrout et al. 2019).
        fa_grape_n_probe: probes per layer and step.
        gated_blocks: learned scalars, 1 at the start, multiply each branch.
        dfa_propagate: with ``dfa``, embeddings, norms and gates learn by back-propagation (the original hybrid);
            without it ``∂L/∂x`` of every linear layer but the head is zero.
        fa_grape_lr: length of the step of B on the unit sphere.
        train_affine: whether gains and biases of the LayerNorms learn.
        freeze_blocks: only embeddings, final norm and head learn: the control that a local rule has to beat.
        vq_per_block: a codebook per block in place of one for all.
        seed: of the feedback matrices and probes.

    Raises:
        ValueError: naming every field outside its range.
    """

    block_size: int = 256
    vocab_size: int = 65
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    dropout: float = 0.2
    bias: bool = False
    attn_mode: AttentionMode = "sigmoid"
    sigmoid_bias_mode: SigmoidBias = "neg_log_n"
    method: Method = "bp"
    ste_sigmoid: bool = False
    ste_gelu: bool = False
    freeze_emb: bool = False
    ln_mode: NormMode = "bp"
    fuse_attn_local: bool = False
    mlp_topk: int = 0
    resid_topk: int = 0
    vq_codes: int = 0
    subspace_rank: int = 0
    fa_init_mode: FeedbackInit = "gaussian"
    fa_sparse_k: int = 0
    fa_grape: bool = False
    fa_grape_n_probe: int = 32
    gated_blocks: bool = False
    dfa_propagate: bool = True
    fa_grape_lr: float = 0.1
    train_affine: bool = True
    freeze_blocks: bool = False
    vq_per_block: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ValueError("\n".join(problems))

    def _problems(self) -> list[str]:
        found = []

        def check(name: str, holds: bool, rule: str) -> None:
            if not holds:
                found.append(f"{name} = {getattr(self, name)!r}: {rule}")

        hints: dict[str, Any] = get_type_hints(type(self))
        for field in fields(self):
            if allowed := get_args(hints[field.name]):
                check(
                    field.name, getattr(self, field.name) in allowed, f"must be one of {', '.join(allowed)}"
                )
        counts = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "fa_grape_n_probe")
        for name in counts:
            check(name, getattr(self, name) >= 1, "must be at least 1")
        if self.n_head >= 1 and self.n_embd >= 1:
            check("n_head", self.n_embd % self.n_head == 0, f"must divide n_embd = {self.n_embd}")
        check("dropout", 0 <= self.dropout < 1, "must lie in [0, 1)")
        for name, width, what in (
            ("mlp_topk", 4 * self.n_embd, "4 · n_embd"),
            ("resid_topk", self.n_embd, "n_embd"),
            ("fa_sparse_k", self.n_embd, "n_embd"),
        ):
            check(name, 0 <= getattr(self, name) <= max(0, width), f"must lie in [0, {what}] = [0, {width}]")
        check("vq_codes", self.vq_codes >= 0, "must be at least 0")
        check(
            "subspace_rank",
            self.subspace_rank == 0 or 1 <= self.subspace_rank < self.n_embd,
            f"must be 0 (none) or lie in [1, n_embd) = [1, {self.n_embd})",
        )
        check(
            "fuse_attn_local",
            not (self.fuse_attn_local and self.attn_mode == "sigmoid"),
            "needs attn_mode = 'softmax', whose formula it is",
        )
        check(
            "fuse_attn_local",
            not (self.fuse_attn_local and self.dropout > 0),
            f"needs dropout = 0, not {self.dropout}, since no attention weight is formed to be dropped",
        )
        check("fa_grape_lr", 0 < self.fa_grape_lr < float("inf"), "must be positive and finite")
        check("seed", self.seed >= 0, "must be at least 0")
        return found

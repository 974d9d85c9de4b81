"""LocalGPT as a LightningModule."""

from dataclasses import fields
from typing import Any

from app.models.feedback import FeedbackInit
from app.models.local_gpt import LocalGPT, LocalGPTConfig
from app.models.local_gpt.config import AttentionMode, NormMode, SigmoidBias
from app.models.local_linear import Method
from app.training.language_model import LanguageModelModule
from app.training.network_problems import network_problems


class LocalGPTModule(LanguageModelModule):
    """Trains :class:`app.models.local_gpt.LocalGPT`.

    Args:
        vocab_size: symbols; taken from the data.
        block_size: longest sequence in tokens; taken from the data.
        n_layer: transformer blocks.
        n_head: attention heads per block; must divide ``n_embd``.
        n_embd: width of the residual stream.
        dropout: on embeddings, attention and both residual branches, in [0, 1).
        bias: biases in the linear layers of the blocks.
        attn_mode: attention weights by ``sigmoid`` or ``softmax``.
        sigmoid_bias_mode: added to sigmoid scores: -ln(block_size) (``neg_log_n``), 0 (``zero``), a ``learned``
            scalar per layer, or -ln(i+1) in row i (``row``).
        method: what linear layers send down and learn from: ``bp``, ``fa``, ``dfa`` or ``sign_sym``.
        ste_sigmoid: gradients pass straight through the attention's sigmoid.
        ste_gelu: gradients pass straight through the GELU.
        freeze_emb: both embeddings stay as they start.
        ln_mode: backward pass of LayerNorms: ``bp``, ``ste``, ``center_scale`` or ``projected`` (exact too).
        fuse_attn_local: softmax attention by the fused formula, whose gradient is the exact one.
        mlp_topk: hidden units kept per token, up to 4 x ``n_embd``; 0 keeps all.
        resid_topk: entries of the residual stream kept after each block, up to ``n_embd``; 0 keeps all.
        vq_codes: code directions that the stream is reduced to after each block; 0 for none.
        subspace_rank: rank of the fixed subspace that the stream is projected on, below ``n_embd``; 0 for none.
        fa_init_mode: feedback ``gaussian``, ``orthogonal``, ``ortho_he`` or ``sparse``.
        fa_sparse_k: entries per row of sparse feedback; 0 for max(1, in // 16).
        fa_grape: feedback follows the weights by random probes, once per optimizer step.
        fa_grape_n_probe: probes per layer and step.
        gated_blocks: a learned scalar multiplies each branch.
        dfa_propagate: with ``dfa``, embeddings, norms and gates still learn by back-propagation.
        fa_grape_lr: length of the feedback's step on the unit sphere, positive.
        train_affine: gains and biases of LayerNorms learn.
        freeze_blocks: only embeddings, final norm and head learn, the control of every local rule.
        vq_per_block: a codebook per block in place of one for all.
        seed: of feedback matrices and probes.
        training: optimizer, schedule and clipping, see :class:`LanguageModelModule`.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int = 6,
        n_head: int = 6,
        n_embd: int = 384,
        dropout: float = 0.2,
        bias: bool = False,
        attn_mode: AttentionMode = "sigmoid",
        sigmoid_bias_mode: SigmoidBias = "neg_log_n",
        method: Method = "bp",
        ste_sigmoid: bool = False,
        ste_gelu: bool = False,
        freeze_emb: bool = False,
        ln_mode: NormMode = "bp",
        fuse_attn_local: bool = False,
        mlp_topk: int = 0,
        resid_topk: int = 0,
        vq_codes: int = 0,
        subspace_rank: int = 0,
        fa_init_mode: FeedbackInit = "gaussian",
        fa_sparse_k: int = 0,
        fa_grape: bool = False,
        fa_grape_n_probe: int = 32,
        gated_blocks: bool = False,
        dfa_propagate: bool = True,
        fa_grape_lr: float = 0.1,
        train_affine: bool = True,
        freeze_blocks: bool = False,
        vq_per_block: bool = False,
        seed: int = 0,
        **training: Any,
    ) -> None:
        config = LocalGPTConfig(
            block_size=block_size,
            vocab_size=vocab_size,
            n_layer=n_layer,
            n_head=n_head,
            n_embd=n_embd,
            dropout=dropout,
            bias=bias,
            attn_mode=attn_mode,
            sigmoid_bias_mode=sigmoid_bias_mode,
            method=method,
            ste_sigmoid=ste_sigmoid,
            ste_gelu=ste_gelu,
            freeze_emb=freeze_emb,
            ln_mode=ln_mode,
            fuse_attn_local=fuse_attn_local,
            mlp_topk=mlp_topk,
            resid_topk=resid_topk,
            vq_codes=vq_codes,
            subspace_rank=subspace_rank,
            fa_init_mode=fa_init_mode,
            fa_sparse_k=fa_sparse_k,
            fa_grape=fa_grape,
            fa_grape_n_probe=fa_grape_n_probe,
            gated_blocks=gated_blocks,
            dfa_propagate=dfa_propagate,
            fa_grape_lr=fa_grape_lr,
            train_affine=train_affine,
            freeze_blocks=freeze_blocks,
            vq_per_block=vq_per_block,
            seed=seed,
        )
        super().__init__(network=LocalGPT(config), **training)

    @classmethod
    def problems(cls, **arguments: Any) -> list[str]:
        """Range rules of the network and of the training arguments."""
        found = network_problems(LocalGPTConfig, arguments)
        if not found:
            of_network = {f.name: arguments[f.name] for f in fields(LocalGPTConfig) if f.name in arguments}
            found = network_problems(LocalGPT, {"config": LocalGPTConfig(**of_network)}, width="n_embd")
        return found + super().problems(**arguments)

    @classmethod
    def without_effect(cls, **arguments: Any) -> list[tuple[str, str]]:
        """Also what belongs to another attention, another rule or a part that is not there."""
        found = super().without_effect(**arguments)
        method, sparse = arguments["method"], arguments["fa_init_mode"] == "sparse"
        is_cut = method == "dfa" and not arguments["dfa_propagate"]
        blocks_frozen = arguments["freeze_blocks"]
        # Then nothing below the final norm wants a gradient.
        none_below = blocks_frozen and arguments["freeze_emb"]
        is_learned = arguments["sigmoid_bias_mode"] == "learned"
        never_learned = ", where a learned bias stays as it starts, that of neg_log_n,"
        equals_bp = (
            blocks_frozen and (not is_cut or none_below)
            if method == "dfa"
            else none_below and not arguments["train_affine"]
        )
        idle: list[tuple[bool, str, tuple[str, ...]]] = [
            (
                arguments["attn_mode"] != "sigmoid",
                "with softmax attention",
                ("sigmoid_bias_mode", "ste_sigmoid"),
            ),
            (method != "fa", f"with method: {method}", ("fa_init_mode", "fa_sparse_k", "fa_grape")),
            (method == "fa" and not sparse, "without fa_init_mode: sparse", ("fa_sparse_k",)),
            (
                method != "fa" or not arguments["fa_grape"],
                "without feedback that follows the weights (method: fa with fa_grape)",
                ("fa_grape_n_probe", "fa_grape_lr"),
            ),
            (method not in ("fa", "dfa"), f"with method: {method}, which draws no feedback", ("seed",)),
            (
                method != "bp" and equals_bp,
                "where nothing is trained that it would teach otherwise than back-propagation does",
                ("method", "seed") if method in ("fa", "dfa") else ("method",),
            ),
            (
                is_cut,
                "with dfa_propagate: false, which sends nothing to it",
                ("ste_sigmoid", "ste_gelu"),
            ),
            (is_cut and is_learned, f"with dfa_propagate: false{never_learned}", ("sigmoid_bias_mode",)),
            (
                none_below,
                "with freeze_blocks and freeze_emb, where no gradient goes below the final norm",
                ("ste_sigmoid", "ste_gelu", "ln_mode", "dfa_propagate"),
            ),
            (
                blocks_frozen,
                "with freeze_blocks: the gates stay at 1",
                ("gated_blocks",),
            ),
            (blocks_frozen and is_learned, f"with freeze_blocks{never_learned}", ("sigmoid_bias_mode",)),
            (
                arguments["mlp_topk"] == 4 * arguments["n_embd"],
                "at 4 x n_embd, which keeps every hidden unit",
                ("mlp_topk",),
            ),
            (
                arguments["resid_topk"] == arguments["n_embd"],
                "at n_embd, which keeps every entry",
                ("resid_topk",),
            ),
            (method != "dfa", f"with method: {method}", ("dfa_propagate",)),
            (arguments["vq_codes"] == 0, "without vq_codes", ("vq_per_block",)),
            (
                arguments["fuse_attn_local"],
                "on the result: the fused formula gives the exact gradient, so the fast exact kernel computes it",
                ("fuse_attn_local",),
            ),
            (
                arguments["ln_mode"] == "projected",
                "on the result: the projected formula gives the exact gradient, so the fast exact kernel computes it",
                ("ln_mode",),
            ),
        ]
        reasons: dict[str, str] = {}
        for is_idle, reason, names in idle:
            for name in names if is_idle else ():
                reasons.setdefault(name, reason)
        return [*found, *reasons.items()]

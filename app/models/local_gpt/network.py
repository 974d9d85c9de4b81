"""A GPT whose layers can learn by local rules.

Shape suffixes: B batch, T sequence, D width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.activations import tap
from app.models.attention import KeyValueCache, key_value_bytes
from app.models.generation import generate
from app.models.language_model import LanguageModel, next_token_loss
from app.models.layers import Embedding, LayerNorm, initial_std, modules_of, transformer_flops
from app.models.local_gpt.attention import LocalSelfAttention, dropped, linear
from app.models.local_gpt.config import LocalGPTConfig
from app.models.local_gpt.sparsity import (
    PER_BLOCK_SEED,
    FrozenSubspace,
    VQResidualDirection,
    hard_top_k,
    top_k_mask,
)
from app.models.local_gpt.surrogates import GELU, LayerNormSTE, LayerNormSurrogate
from app.models.local_linear import LocalLinear, OutputError, align_feedback, local_linears
from app.records import Axis, LanguageModelOutput, Measure

FEEDBACK = (".feedback", ".sign_scale")  # how the names of what carries errors end
BLOCK_LINEARS = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.fc", "mlp.proj")


class LocalMLP(nn.Module):
    """Feed-forward network, four times as wide inside; at most ``mlp_topk`` hidden units of a token are on."""

    def __init__(self, config: LocalGPTConfig):
        super().__init__()
        self.dropout = config.dropout
        self.top_k = config.mlp_topk
        self.fc = linear(config, config.d_model, 4 * config.d_model)
        self.proj = linear(config, 4 * config.d_model, config.d_model)
        self.activation = GELU(config.ste_gelu)
        self.derivative = config.method == "dfa" and config.dfa_derivative

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, D) → (B, T, D)``; the residual dropout is applied here."""
        drive = tap(self, "pre", self.fc(x))
        hidden = self.activation(drive)
        if self.derivative and torch.is_grad_enabled():
            slope = self.activation.slope(drive)
            self.fc.multiply_error(slope * top_k_mask(hidden, self.top_k) if self.top_k else slope)
        if self.top_k:
            hidden = hard_top_k(hidden, self.top_k)
        hidden = tap(self, "post", hidden)
        return dropped(self, self.proj, hidden, self.dropout if self.training else 0.0, self.derivative)


class LocalBlock(nn.Module):
    """Pre-norm transformer block, then whatever reduces the residual stream."""

    def __init__(self, config: LocalGPTConfig):
        super().__init__()
        self.ln1 = layer_norm(config)
        self.attn = LocalSelfAttention(config)
        self.ln2 = layer_norm(config)
        self.mlp = LocalMLP(config)
        self.top_k = config.resid_topk
        self.alpha_attn = nn.Parameter(torch.ones(1)) if config.gated_blocks else None
        self.alpha_mlp = nn.Parameter(torch.ones(1)) if config.gated_blocks else None

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """``(B, T, D) → (B, T, D)``, positions in the cache before those of ``x``."""
        x = tap(self, "in", x)
        attended = self.attn(self.ln1(x), cache)
        x = tap(self, "mid", x + (attended if self.alpha_attn is None else self.alpha_attn * attended))
        fed = self.mlp(self.ln2(x))
        x = x + (fed if self.alpha_mlp is None else self.alpha_mlp * fed)
        return tap(self, "out", hard_top_k(x, self.top_k) if self.top_k else x)


class LocalGPT(LanguageModel, options_of=LocalGPTConfig):
    """GPT with sigmoid or softmax attention, whose linear layers learn by a local rule.

    With ``method="bp"`` and softmax attention it is the well-known character GPT; the defaults are 10.8 M
    parameters wide. Weights and embeddings start from N(0, 0.02²), the projections onto the residual stream from
    N(0, 0.02² / (2·n_layers)); feedback matrices are drawn for these weights.

    What VQ and subspace make of the stream comes after a block: :meth:`layer_outputs` shows it as the block gave it,
    with ``resid_topk`` applied, and the next block or the final norm reads the reduced one.

    Args:
        config: all of its options; None to build it from ``fields``.
        fields: options of :class:`LocalGPTConfig`, where no ``config`` is given.

    Raises:
        ValueError: an option is out of range; the message names every such option.
        TypeError: both ``config`` and ``fields``, or a field that does not exist.
    """

    can_step = True
    former_names: ClassVar = {"n_layer": "n_layers", "n_head": "n_heads", "n_embd": "d_model"}

    def __init__(self, config: LocalGPTConfig | None = None, /, **fields: Any):
        super().__init__()
        of_fields = LocalGPTConfig(**fields)
        if config is not None and of_fields != LocalGPTConfig():
            raise TypeError("config and fields of one: give a config or its fields, not both")
        self.config = config = config or of_fields
        self.max_context = config.block_size
        # A block's error comes from the head, and feedback is turned towards the weights between two steps.
        self.needs_whole_weights = config.method == "dfa" or (config.method == "fa" and config.fa_grape)
        self.dropout = config.dropout
        D, L = config.d_model, config.n_layers
        self.tok_emb = Embedding(config.vocab_size, D)
        self.pos_emb = nn.Embedding(config.block_size, D)
        self.blocks = nn.ModuleList(LocalBlock(config) for _ in range(L))
        self.ln_f = layer_norm(config)
        # With dfa the head is an ordinary layer: its error is the error.
        is_local = config.method in ("fa", "sign_sym")
        self.head = LocalLinear(
            D,
            config.vocab_size,
            bias=False,
            method=config.method if is_local else "bp",
            init=config.fa_init_mode,
            sparse_k=config.fa_sparse_k,
            seed=config.seed,
            draws_feedback=False,
        )
        self.vq = nn.ModuleList(
            VQResidualDirection(config.vq_codes, D, PER_BLOCK_SEED + block if config.vq_per_block else None)
            for block in range((L if config.vq_per_block else 1) if config.vq_codes else 0)
        )
        self.subspace = FrozenSubspace(config.subspace_rank, D) if config.subspace_rank else None
        self._initialise(L)
        if config.method == "dfa":
            OutputError().connect(self, self.head)
        self._freeze()

    def _initialise(self, n_layers: int) -> None:
        for name, module in self.named_modules():
            if isinstance(module, LocalLinear | nn.Embedding):
                nn.init.normal_(module.weight, std=initial_std(name, n_layers))
            if isinstance(module, LocalLinear):
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                module.layer_name = name
                module.draw_feedback()

    def _freeze(self) -> None:
        config = self.config
        frozen: list[nn.Module] = [self.tok_emb, self.pos_emb] if config.freeze_emb else []
        if config.freeze_blocks:
            frozen.append(self.blocks)
        for module in frozen:
            module.requires_grad_(False)

    def description(self) -> dict[str, Any]:
        """See :meth:`LanguageModel.description`; a subclass that takes no fields is described by its own arguments."""
        found = super().description()
        if found["init_args"].keys() >= (fields := asdict(self.config)).keys():
            found["init_args"] |= fields
        return found

    def num_params(self) -> int:
        """All parameters, frozen ones and embeddings included; :meth:`parameter_counts` tells them apart."""
        return sum(parameter.numel() for parameter in self.parameters())

    def starting_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Feedback of another rule is left out, and that of this network's rule stays as it was drawn."""
        if _rule_of(weights) == self.config.method:
            return dict(weights)
        own = {name: x for name, x in self.state_dict().items() if name.endswith(FEEDBACK)}
        return {name: x for name, x in weights.items() if not name.endswith(FEEDBACK)} | own

    def flops_per_token(self, block_size: int) -> float:
        """Training FLOPs of one token, see :func:`app.models.layers.transformer_flops`.

        Frozen blocks take no gradient of their weights; with frozen embeddings no gradient goes through them either.
        """
        V, D = self.tok_emb.weight.shape
        per_weight, per_score = 6.0, 6.0
        if self.config.freeze_blocks:
            per_weight, per_score = (2.0, 2.0) if self.config.freeze_emb else (4.0, 6.0)
        return transformer_flops(
            len(self.blocks), D, V, block_size, per_weight=per_weight, per_score=per_score
        )

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """See :meth:`LanguageModel.forward`.

        Raises:
            ValueError: T is beyond ``block_size``.
        """
        logits = tap(self, "logits", self.head(self._hidden(idx)))  # (B, T, V)
        return LanguageModelOutput(
            logits=logits,
            loss=next_token_loss(logits, targets),
            aux_loss=torch.zeros((), device=logits.device),
            routing=[],
        )

    def prefill(self, idx: Tensor) -> tuple[Tensor, list[KeyValueCache]]:
        """See :meth:`LanguageModel.prefill`; a cache of ``block_size`` positions per block."""
        caches = [KeyValueCache(self.config.block_size) for _ in self.blocks]
        return self.head(self._hidden(idx, caches)[:, -1]), caches

    def step(self, token: Tensor, cache: list[KeyValueCache]) -> Tensor:
        """See :meth:`LanguageModel.step`; at most ``block_size`` positions in all."""
        logits: Tensor = self.head(self._hidden(token[:, None], cache)[:, -1])
        return logits

    def state_size(self, n_tokens: int) -> int:
        """See :meth:`LanguageModel.state_size`: keys and values of every block."""
        return key_value_bytes(len(self.blocks), self.tok_emb, n_tokens, self.config.block_size)

    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continues each row; see :func:`app.models.generation.generate`.

        Returns:
            ``(B, T0 + max_new_tokens)`` int64, the prompts with what follows.
        """
        new = generate(self, idx, max_new_tokens, temperature=temperature, top_k=top_k, generator=generator)
        return torch.cat([idx, *(token[:, None] for token in new)], dim=1)

    def _hidden(self, idx: Tensor, caches: list[KeyValueCache] | None = None) -> Tensor:
        """What the head reads, ``(B, T, D)``."""
        start = 0 if caches is None else caches[0].length
        end = start + idx.shape[1]
        if end > self.config.block_size:
            raise ValueError(
                f"a context of {end} tokens: this network reads at most block_size = {self.config.block_size}"
            )
        position = torch.arange(start, end, device=idx.device)
        # (B, T, D)
        x = tap(self, "embed", self.tok_emb(idx)) + tap(self, "pos_embed", self.pos_emb(position))
        x = F.dropout(x, self.dropout, self.training)
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i])
            if len(self.vq):
                x = self.vq[i % len(self.vq)](x)
            if self.subspace is not None:
                x = self.subspace(x)
            if len(self.vq) or self.subspace is not None:
                x = tap(self, f"blocks.{i}.reduced", x)
        return tap(self, "final", self.ln_f(x))

    # -- feedback ---------------------------------------------------------------------------------------

    def _moving_feedback(self) -> list[LocalLinear]:
        """Layers whose feedback matrix follows the weights: all but the head, which keeps its own."""
        if not (self.config.fa_grape and self.config.method == "fa"):
            return []
        return [layer for layer in local_linears(self) if layer is not self.head]

    def after_optimizer_step(self, step: int) -> None:
        """With ``fa_grape``, turns every B but the head's towards the probed Jacobian."""
        align_feedback(self._moving_feedback(), self.config.fa_grape_n_probe, self.config.fa_grape_lr, step)

    def running_state(self) -> list[Tensor]:
        """With ``fa_grape``, the feedback matrices."""
        return [layer.feedback for layer in self._moving_feedback() if layer.feedback is not None]

    def measures(self, output: LanguageModelOutput) -> Mapping[str, Measure]:
        """What can be read off the weights: gates, attention biases, cosine of feedback and weights."""
        blocks = modules_of(self.blocks, LocalBlock)
        layer = Axis("layer")
        measures: dict[str, Measure] = {}
        gates = [gate.detach() for b in blocks for gate in (b.alpha_attn, b.alpha_mlp) if gate is not None]
        if gates:
            values = torch.cat(gates).view(len(blocks), 2)
            axes = (layer, Axis("branch", ("attn", "mlp")))
            measures["branch_gate"] = Measure(
                values, axes, "gain", reduce="none", meaning="learned factor on the output of each branch"
            )
        biases = [b.attn.sig_bias.detach() for b in blocks if b.attn.sig_bias is not None]
        if biases:
            measures["sigmoid_bias"] = Measure(
                torch.stack(biases),
                (layer,),
                "level",
                reduce="none",
                meaning="learned number that is added to every attention score",
            )
        if self.config.method in ("fa", "sign_sym"):
            cosines = torch.stack([torch.stack([_cosine(b, name) for name in BLOCK_LINEARS]) for b in blocks])
            names = tuple(name.partition(".")[2] for name in BLOCK_LINEARS)
            measures["feedback_cosine"] = Measure(
                cosines,
                (layer, Axis("linear", names)),
                "level",
                reduce="none",
                meaning="cosine between the matrix that carries errors back and the weights; 1 is back-propagation",
            )
        return measures


def layer_norm(config: LocalGPTConfig) -> nn.Module:
    """LayerNorm with the configured backward pass; the projected one is the exact one."""
    norm: nn.Module
    if config.ln_mode == "ste":
        norm = LayerNormSTE(config.d_model)
    elif config.ln_mode == "center_scale":
        norm = LayerNormSurrogate("center_scale", config.d_model)
    else:
        norm = LayerNorm(config.d_model, for_products=True)
    return norm.requires_grad_(config.train_affine)


def _rule_of(weights: Mapping[str, Tensor]) -> str:
    """The rule of the network with this state dict; only ``dfa`` has feedback, but none for the head."""
    if any(name.endswith(".sign_scale") for name in weights):
        return "sign_sym"
    if not any(name.endswith(".feedback") for name in weights):
        return "bp"
    return "fa" if "head.feedback" in weights else "dfa"


def _cosine(block: LocalBlock, name: str) -> Tensor:
    """Between the matrix that carries errors backwards and the weights of one linear layer, ``()``."""
    layer = block.get_submodule(name)
    assert isinstance(layer, LocalLinear)
    weight = layer.weight.detach()
    feedback = weight.sign() if layer.feedback is None else layer.feedback
    return F.cosine_similarity(feedback.flatten(), weight.flatten(), dim=0)

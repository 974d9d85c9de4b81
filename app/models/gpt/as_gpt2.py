"""A GPT as the weights and the configuration of a GPT-2 model of transformers, which needs no code of ours."""

from typing import Any

import torch
from torch import Tensor

from app.models.gpt.network import GPT


def gpt2_config(network: GPT) -> dict[str, Any]:
    """What ``config.json`` of a GPT-2 model says; there is no token that ends a text."""
    assert network.is_gpt2, "SwiGLU and gates are nothing that a GPT-2 has"
    arguments = network.description()["init_args"]
    dropout = arguments["dropout"]
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": arguments["vocab_size"],
        "n_positions": arguments["block_size"],
        "n_embd": arguments["d_model"],
        "n_layer": arguments["n_layers"],
        "n_head": arguments["n_heads"],
        "activation_function": "gelu",  # the exact one; the published GPT-2 approximates it
        "layer_norm_epsilon": network.ln_f.eps,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "resid_pdrop": dropout,
        "tie_word_embeddings": arguments["tie_weights"],
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": str(network.tok_emb.weight.dtype).removeprefix("torch."),
    }


@torch.no_grad()
def gpt2_weights(network: GPT) -> dict[str, Tensor]:
    """The state dict of a ``GPT2LMHeadModel``: matrices as ``(in, out)``, biases of zeros where there are none."""
    own = network.state_dict()
    weights = {
        "transformer.wte.weight": own["tok_emb.weight"],
        "transformer.wpe.weight": own["pos_emb.weight"],
        "transformer.ln_f.weight": own["ln_f.weight"],
        "transformer.ln_f.bias": own["ln_f.bias"],
    }
    if not network.description()["init_args"]["tie_weights"]:
        weights["lm_head.weight"] = own["head.weight"]
    for layer in range(len(network.blocks)):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        for name, norm in (("ln1", "ln_1"), ("ln2", "ln_2")):
            for part in ("weight", "bias"):
                weights[f"{theirs}{norm}.{part}"] = own[f"{ours}{name}.{part}"]
        for names, target in (
            (("attn.q_proj", "attn.k_proj", "attn.v_proj"), "attn.c_attn"),
            (("attn.o_proj",), "attn.c_proj"),
            (("mlp.fc",), "mlp.c_fc"),
            (("mlp.proj",), "mlp.c_proj"),
        ):
            rows = torch.cat([own[f"{ours}{name}.weight"] for name in names])  # (out, in)
            biases = [own.get(f"{ours}{name}.bias") for name in names]
            weights[f"{theirs}{target}.weight"] = rows.T.contiguous()
            weights[f"{theirs}{target}.bias"] = torch.cat(
                [rows.new_zeros(len(rows) // len(names)) if bias is None else bias for bias in biases]
            )
    return weights

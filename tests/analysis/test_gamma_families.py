"""Which tensor belongs where, and that a checkpoint is read a piece at a time."""

import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from app.analysis.gamma import analyse
from app.analysis.gamma_families import Scales, device_scales, place, stored_scales
from app.analysis.stored_tensors import CHUNK_BYTES, find
from app.models.gpt import GPT
from app.models.tilelli import TilelliLM
from tests.support.application import REPOSITORY, environment

NAMES = {
    # ours
    "network.blocks.3.ln1.weight": ("ln1", 1),
    "blocks.3.attn.q_proj.weight": ("q_proj", 2),
    "blocks.3.mlp.proj.weight": ("proj", 2),
    "blocks.3.norm.weight": ("norm", 1),
    "blocks.3.router.weight": ("router", 2),
    "blocks.3.local.weight": ("local", 3),
    "blocks.3.sparse.value.weight": ("sparse", 3),
    "blocks.3.dense.up.weight": ("dense", 3),
    "blocks.3.state.input_gain": ("state", 2),
    "blocks.3.state.decay_logit": (None, 2),
    "blocks.3.dense.up.step": (None, 1),
    "blocks.3.ln1.bias": (None, 1),
    "blocks.3.ff.0.weight": ("ff.0", 2),
    "tok_emb.weight": (None, 2),
    "ln_f.weight": (None, 1),
    # Hugging Face decoders
    "model.layers.3.input_layernorm.weight": ("input_ln", 1),
    "model.layers.3.post_attention_layernorm.weight": ("post_attn_ln", 1),
    "model.layers.3.self_attn.q_norm.weight": ("q_norm", 1),
    "model.layers.3.self_attn.k_proj.weight": ("k_proj", 2),
    "model.layers.3.self_attn.k_proj.bias": (None, 1),
    "model.layers.3.mlp.gate_proj.weight": ("gate_proj", 2),
    "model.layers.3.mlp.experts.7.down_proj.weight": ("down_proj", 2),
    "model.vision_tower.encoder.layers.3.mlp.fc1.weight": (None, 2),
    "model.embed_tokens.weight": (None, 2),
    # GPT-2
    "transformer.h.3.ln_1.weight": ("ln_1", 1),
    "h.3.attn.c_attn.weight": ("q_proj k_proj v_proj", 2),
    "h.3.attn.c_proj.weight": ("attn.c_proj", 2),
    "h.3.mlp.c_proj.weight": ("c_proj", 2),
    "h.3.mlp.c_fc.weight": ("c_fc", 2),
    "h.3.attn.bias": (None, 4),
}


@pytest.mark.parametrize("name", NAMES)
def test_where_a_tensor_belongs(name: str) -> None:
    families, n_axes = NAMES[name]
    member = place(name, n_axes)
    if families is None:
        assert member is None
    else:
        assert member is not None
        assert (member.layer, " ".join(member.families)) == (3, families)
        assert member.kind == ("norm" if n_axes == 1 else "matrix")


def decoder(n_layers: int, width: int = 8, qk_norm: bool = False) -> dict[str, Tensor]:
    """Names and shapes as Hugging Face's decoders have them; the scale of layer i is known."""
    draw = torch.Generator().manual_seed(0)
    tensors = {"model.embed_tokens.weight": torch.randn(20, width, generator=draw)}
    for layer in range(n_layers):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = torch.full((width,), 1.0 + layer)
        for name in ("q_proj", "k_proj"):
            tensors[prefix + f"self_attn.{name}.weight"] = torch.randn(
                width, width, generator=draw
            ).bfloat16()
        if qk_norm:
            tensors[prefix + "self_attn.q_norm.weight"] = torch.randn(4, generator=draw)
            tensors[prefix + "self_attn.k_norm.weight"] = torch.randn(4, generator=draw)
    return tensors


def test_scales_of_a_sharded_directory(tmp_path: Path) -> None:
    tensors = decoder(5)
    names = sorted(tensors)
    for shard in range(3):
        part = {name: tensors[name] for name in names[shard::3]}
        save_file(part, tmp_path / f"model-{shard + 1:05d}-of-00003.safetensors")
    scales = stored_scales(find(tmp_path))
    assert set(scales.rms) == {"input_ln", "q_proj", "k_proj"}
    assert scales.rms["input_ln"] == pytest.approx([1, 2, 3, 4, 5])
    for layer in range(5):
        weight = tensors[f"model.layers.{layer}.self_attn.q_proj.weight"].double()
        assert scales.rms["q_proj"][layer] == pytest.approx(weight.norm().item() / 8)
        assert scales.mean_abs["q_proj"][layer] == pytest.approx(weight.abs().mean().item())
    again = Scales.from_dict(json.loads(json.dumps(scales.as_dict(), allow_nan=False)))
    assert again == scales
    temperature = analyse(scales, with_chance=False).temperatures["identifiable"]
    rows = zip(*(scales.rms[family] for family in ("input_ln", "q_proj", "k_proj")), strict=True)
    expected = [gamma**2 * query * key for gamma, query, key in rows]
    assert temperature.values == pytest.approx([expected[0] / value for value in expected])


@pytest.mark.parametrize("one_plus", [False, True])
def test_norms_of_queries_and_keys_set_the_temperature(tmp_path: Path, one_plus: bool) -> None:
    tensors = decoder(5, qk_norm=True)
    save_file(tensors, tmp_path / "model.safetensors")
    scales = stored_scales(find(tmp_path), model_type="gemma3_text" if one_plus else "qwen3")
    assert scales.one_plus == one_plus
    products = []
    for layer in range(5):
        query, key = (
            tensors[f"model.layers.{layer}.self_attn.{n}_norm.weight"].double() + one_plus for n in "qk"
        )
        products.append((query * key).square().mean().sqrt().item())
        assert scales.rms["input_ln"][layer] == pytest.approx(1 + layer + one_plus)
    assert scales.rms["qk_norm"] == pytest.approx(products)
    temperature = analyse(scales, with_chance=False).temperatures["identifiable"]
    assert temperature.values == pytest.approx([products[0] / product for product in products])


def test_gains_stored_as_one_less_are_known_by_name(tmp_path: Path) -> None:
    tensors = decoder(2)
    for layer in range(2):
        tensors[f"model.layers.{layer}.pre_feedforward_layernorm.weight"] = torch.zeros(8)
    save_file(tensors, tmp_path / "gemma.safetensors")
    scales = stored_scales(find(tmp_path / "gemma.safetensors"))
    assert scales.one_plus
    assert scales.rms["pre_feedforward_layernorm"] == [1.0, 1.0]
    assert scales.rms["input_ln"] == pytest.approx([2, 3])
    assert scales.rms["q_proj"][0] == pytest.approx(
        tensors["model.layers.0.self_attn.q_proj.weight"].double().norm() / 8
    )


def test_the_joint_projection_of_gpt2_is_split(tmp_path: Path) -> None:
    weight = torch.cat([torch.full((4, 4), value) for value in (1.0, 2.0, 3.0)], dim=1)
    save_file({"h.0.attn.c_attn.weight": weight}, tmp_path / "gpt2.safetensors")
    assert stored_scales(find(tmp_path / "gpt2.safetensors")).rms == {
        "q_proj": [1],
        "k_proj": [2],
        "v_proj": [3],
    }


@pytest.mark.parametrize(
    "network", [GPT(11, 4, 3, 2, 8), TilelliLM(11, d_model=8, n_layers=2, d_head=4, n_banks=2)]
)
def test_an_archive_reads_as_the_weights_in_memory(network: nn.Module, tmp_path: Path) -> None:
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(
        {"state_dict": state, "optimizer_states": [{"x": torch.ones(3)}], "step": 4}, tmp_path / "a.ckpt"
    )
    scales = stored_scales(find(tmp_path / "a.ckpt"))
    keys, numbers = device_scales(network.named_parameters())
    found = {
        (f, layer): value
        for f, row in scales.rms.items()
        for layer, value in enumerate(row)
        if value is not None
    }
    assert found == pytest.approx(dict(zip(keys, numbers.tolist(), strict=True)))


def test_half_precision_and_layers_without_a_family(tmp_path: Path) -> None:
    tensors = {
        "h.0.ln_1.weight": torch.ones(3).half(),
        "h.2.ln_1.weight": torch.full((3,), 2.0, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    scales = stored_scales(find(tmp_path / "a.safetensors"))
    assert scales.rms["ln_1"] == [1.0, None, 2.0]
    assert scales.series("ln_1") == ([0, 2], [1.0, 2.0])


@pytest.mark.parametrize(
    "content", [b"", b"abc", struct.pack("<Q", 1 << 60), struct.pack("<Q", 4) + b"nope", b"PK\x03\x04"]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_is_no_checkpoint_is_said_to_be_none(content: bytes, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"a{suffix}")):
        find(tmp_path / f"a{suffix}")


GAIN = "h.0.ln_1.weight"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("[]", "no object"),
        ('{"a":' * 50_000, "no safetensors file"),
        (json.dumps({GAIN: "x"}), "damaged"),
        (json.dumps({GAIN: {"dtype": "F32", "shape": [-4], "data_offsets": [-16, 0]}}), "damaged"),
        (json.dumps({GAIN: {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}}), "damaged"),
        (
            json.dumps({GAIN: {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 16]}}),
            "take 16",
        ),
        (json.dumps({GAIN: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}), "not finite"),
        (
            json.dumps({f"h.{10**12}.ln_1.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
            "no tensor's name",
        ),
    ],
)
def test_a_hostile_header_is_one_clear_error(header: str, said: str, tmp_path: Path) -> None:
    content = struct.pack("<Q", len(header)) + header.encode() + struct.pack("<4f", 1, 1, float("nan"), 1)
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        stored_scales(find(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"scales": {}, "kinds": {}},
        {"scales": {"a": [1.0, float("nan")]}, "kinds": {"a": "norm"}},
        {"scales": {"a": []}, "kinds": {"a": "norm"}},
        {"scales": {"a": [None]}, "kinds": {"a": "norm"}},
        {"scales": {"a": [1.0], "b": [1.0, 2.0]}, "kinds": {"a": "norm", "b": "norm"}},
        {"scales": {"a": [1.0]}, "kinds": {"a": "other"}},
    ],
)
def test_what_holds_no_scales_is_said_to_hold_none(content: Any) -> None:
    with pytest.raises(ValueError, match="no scales over depth"):
        Scales.from_dict(content)


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    save_file(decoder(2), tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="incomplete"):
        stored_scales(find(tmp_path / "a.safetensors"))


def sparse_checkpoint(folder: Path, n_shards: int, shard_bytes: int) -> None:
    """Shards of one huge matrix each, whose zeros take no room on the disk."""
    width = 1 << 12
    for shard in range(n_shards):
        rows = shard_bytes // (2 * width)
        entry = {"dtype": "BF16", "shape": [rows, width], "data_offsets": [0, rows * width * 2]}
        header = json.dumps({f"model.layers.{shard}.mlp.up_proj.weight": entry}).encode()
        with (folder / f"model-{shard:05d}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + rows * width * 2)


MEASURE = """
import sys
from pathlib import Path
from app.analysis.gamma_families import stored_scales
from app.analysis.stored_tensors import find
from app.run.memory import peak_bytes
before = peak_bytes()
scales = stored_scales(find(Path(sys.argv[1])))
print(before, peak_bytes(), len(scales.rms["up_proj"]))
"""


def added_by_reading(folder: Path) -> tuple[int, int]:
    """Memory that a process takes above what its imports did, to read a checkpoint; and the layers that it found."""
    command = [sys.executable, "-c", MEASURE, str(folder)]
    ended = subprocess.run(
        command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    before, after, n_layers = map(int, ended.stdout.split())
    return after - before, n_layers


@pytest.mark.process
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    sparse_checkpoint(tmp_path, n_shards=2, shard_bytes=96 << 20)
    added, n_layers = added_by_reading(tmp_path)
    assert n_layers == 2
    # None at all would be a figure of something else.
    assert 2 * CHUNK_BYTES < added < 16 * CHUNK_BYTES < 192 << 20


COMMAND = """
import sys
from app.cli import main
from app.run.memory import peak_bytes
code = main(["gamma", sys.argv[1], "--output", sys.argv[2]])
print("peak", peak_bytes())
sys.exit(code)
"""
#: widths of a decoder of 4.02 billion parameters in 36 layers, those of Qwen3-4B
D, D_HEAD, N_HEADS, N_KEYS, F, VOCABULARY = 2560, 128, 32, 8, 9728, 151_936
MATRICES = {
    "self_attn.q_proj": (N_HEADS * D_HEAD, D),
    "self_attn.k_proj": (N_KEYS * D_HEAD, D),
    "self_attn.v_proj": (N_KEYS * D_HEAD, D),
    "self_attn.o_proj": (D, N_HEADS * D_HEAD),
    "mlp.gate_proj": (F, D),
    "mlp.up_proj": (F, D),
    "mlp.down_proj": (D, F),
}
NORMS = {
    "input_layernorm": D,
    "post_attention_layernorm": D,
    "self_attn.q_norm": D_HEAD,
    "self_attn.k_norm": D_HEAD,
}


def four_billion(folder: Path, n_layers: int = 36, n_shards: int = 3) -> int:
    """Shards of such a decoder in bf16, and how many parameters it has.

    Of matrix entries the last row alone is not 0: its square mean is (1 + layer)² over the number of rows. What is 0
    takes no room on a disk that knows holes.
    """
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, D)}
    for layer in range(n_layers):
        own = MATRICES | {name: (width,) for name, width in NORMS.items()}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    names = list(shapes)
    for shard in range(n_shards):
        header, end = {}, 0
        for name in names[shard::n_shards]:
            begin, end = end, end + 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [begin, end]}
        head = json.dumps(header).encode()
        with (folder / f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            file.truncate(8 + len(head) + end)
            for name, entry in header.items():
                width = shapes[name][-1]
                file.seek(8 + len(head) + entry["data_offsets"][1] - 2 * width)
                value = 1.0 + int(name.split(".")[2]) if "layers" in name else 0.0
                file.write(torch.full((width,), value).bfloat16().view(torch.int16).numpy().tobytes())
    return sum(map(math.prod, shapes.values()))


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_four_billion_parameters_are_read_in_a_gigabyte(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert four_billion(tmp_path / "model") > 4_000_000_000
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, str(tmp_path / "model"), str(tmp_path)],
        env=environment(), cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = int(ended.stdout.split()[-1])
    assert peak < 1_000_000_000, f"{peak:,} bytes"
    scales = json.loads((tmp_path / "gamma.json").read_text())["scales"]
    assert scales["input_ln"] == scales["q_norm"] == [1.0 + layer for layer in range(36)]
    for name, (n_rows, _) in MATRICES.items():
        assert scales[name.split(".")[1]] == pytest.approx(
            [(1 + layer) * n_rows**-0.5 for layer in range(36)]
        )


def test_scales_alone_are_enough() -> None:
    families = ("input_ln", "post_attn_ln", "q_norm", "ln1", "q_proj", "gate_proj", "c_fc")
    scales = Scales.from_dict({"scales": {family: [1.0, 2.0] for family in families}})
    assert [scales.kinds[family] for family in families] == ["norm"] * 4 + ["matrix"] * 3

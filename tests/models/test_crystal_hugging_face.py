"""The same exchange in a GPT-2 of transformers, through the library's table of attention functions."""

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from app.models.crystal import CrystalPatch, attention_layers, calibrate, head_shape  # noqa: E402
from tests import tolerances  # noqa: E402
from tests.parity import relative_error  # noqa: E402

IDX = torch.randint(1, 40, (3, 12), generator=torch.Generator().manual_seed(1))


def small_model(attention: str = "sdpa", **options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **dict(vocab_size=40, n_positions=16, n_embd=12, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0) | options,
        attn_implementation=attention,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


def logits(model: Any, idx: Tensor = IDX, mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=idx, attention_mask=mask).logits
    return found


@pytest.mark.parametrize(
    "options", [{}, {"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_full_equals_the_model_and_the_rest_differs(attention: str, options: dict[str, Any]) -> None:
    model = small_model(attention, **options)
    own = logits(model)
    basis = calibrate(model, [1, 2], [IDX])
    assert model.config._attn_implementation == attention
    with CrystalPatch(model, [1, 2], "full"):
        assert relative_error(logits(model), own) <= tolerances.OUTPUT
    with CrystalPatch(model, [1, 2], "lowrank", 6, basis=basis):
        assert relative_error(logits(model), own) <= tolerances.OUTPUT
    for mode in ("top1", "random", "lowrank"):
        with CrystalPatch(model, [1, 2], mode, 2, basis=basis):
            assert relative_error(logits(model), own) > 1e-3
        assert torch.equal(logits(model), own)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("mode", "options"), [("top1", {}), ("topk", {"top_k": 2}), ("lowrank", {"rank": 2})]
)
def test_padding_is_respected(mode: Any, options: dict[str, Any], side: str) -> None:
    """A padded sequence gives what it gives alone, and padding is in no basis."""
    model = small_model()
    text = slice(4, 12) if side == "left" else slice(0, 8)
    mask = torch.zeros_like(IDX)
    mask[:, text] = 1
    mask[0] = 1
    basis = calibrate(model, [0, 2], [{"input_ids": IDX, "attention_mask": mask}])
    assert basis.n_tokens == 12 + 2 * 8
    if (
        side == "right"
    ):  # positions count from the first token, so that only here a part alone is the same text
        alone = calibrate(model, [0, 2], [IDX[:1], IDX[1:, text]])
        assert relative_error(basis.modes, alone.modes) <= 1e-4
    with CrystalPatch(model, [0, 2], mode, **options, basis=basis):
        padded = logits(model, mask=mask)
        assert padded.isfinite().all()
        changed = IDX.where(mask.bool(), 7)
        assert torch.equal(logits(model, changed, mask)[mask.bool()], padded[mask.bool()])
        assert relative_error(padded[:1], logits(model, IDX[:1])) <= tolerances.OUTPUT
        if side == "right":
            assert relative_error(padded[1:, text], logits(model, IDX[1:, text])) <= tolerances.OUTPUT


def test_generation_from_a_cache() -> None:
    model = small_model()
    with CrystalPatch(model, [0, 1, 2], "topk", top_k=2):
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        cached = model.generate(IDX, use_cache=True, **options)
        assert torch.equal(cached, model.generate(IDX, use_cache=False, **options))


def test_is_restored_after_an_exception() -> None:
    model = small_model("eager")
    own = logits(model)

    def stop_midway() -> None:
        with CrystalPatch(model, [0], "top1"), CrystalPatch(model, [0, 1], "top1"):
            logits(model)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        stop_midway()
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model), own)
    with pytest.raises(IndexError):
        calibrate(model, [0], [torch.full((1, 4), 99)])
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model), own)


def test_patches_may_end_in_any_order() -> None:
    model = small_model("eager")
    own = logits(model)
    first, second = CrystalPatch(model, [0, 1], "top1"), CrystalPatch(model, [1, 2], "top1")
    with second:
        of_second = logits(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(logits(model), of_second)
    second.__exit__(None, None, None)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model), own)


def test_a_model_inside_another_is_found() -> None:
    outer = torch.nn.Module()
    outer.inner = small_model()
    assert len(attention_layers(outer)) == 3
    assert head_shape(outer.inner, 1) == (2, 6)


def test_another_family_is_told() -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ValueError, match="of the family 'gpt_neox'; of transformers, only gpt2, llama"):
        attention_layers(transformers.GPTNeoXForCausalLM(config))


@pytest.mark.parametrize("n_groups", [1, 2])
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_grouped_heads_and_rotary_positions(family: str, n_groups: int) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4 // n_groups, head_dim=4, max_position_embeddings=16,
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    own = logits(model)
    assert len(attention_layers(model)) == 3
    assert head_shape(model, 1) == (4, 4)
    basis = calibrate(model, [1, 2], [IDX])
    assert basis.modes.shape[1:3] == (4, 4)
    for mode, options in (("full", {}), ("lowrank", {"rank": 4, "basis": basis}), ("topk", {"top_k": 12})):
        with CrystalPatch(model, [1, 2], mode, **options):
            assert relative_error(logits(model), own) <= tolerances.OUTPUT
    for mode in ("top1", "lowrank", "random"):
        with CrystalPatch(model, [1, 2], mode, 2, basis=basis):
            assert relative_error(logits(model), own) > 1e-3
        assert torch.equal(logits(model), own)
    with CrystalPatch(model, [0, 1, 2], "topk", top_k=2):
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        cached = model.generate(IDX, use_cache=True, **options)
        assert torch.equal(cached, model.generate(IDX, use_cache=False, **options))


def test_only_padding_is_no_calibration_text() -> None:
    model = small_model()
    batch = {"input_ids": IDX, "attention_mask": torch.zeros_like(IDX)}
    with pytest.raises(ValueError, match=r"calibration tokens = 0: .*padding not counted"):
        calibrate(model, [0], [batch])

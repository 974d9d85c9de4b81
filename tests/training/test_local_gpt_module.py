"""The module of LocalGPT: one argument per field, mistakes and idle settings named."""

import inspect
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from app.models.local_gpt import LocalGPT, LocalGPTConfig
from app.run import arguments
from app.run.configuration import find_config, read_config
from app.run.errors import ConfigurationError
from app.training import LocalGPTModule
from app.training.command_line import RunCLI
from app.training.estimate import describe_network
from tests.parity import relative_error
from tests.support.names import name_of

RULE_OF: dict[str, dict[str, Any]] = {
    "softmax": {"attn_mode": "softmax"},
    "sigmoid": {"attn_mode": "sigmoid", "sigmoid_bias_mode": "row"},
    "fa": {"method": "fa"},
    "dfa": {"method": "dfa"},
    "sign_sym": {"method": "sign_sym"},
    "grape": {"method": "fa", "fa_grape": True},
    "frozen": {"freeze_blocks": True},
}
NAMES = ("bp", "softmax", "sigmoid", "fa", "dfa", "sign_sym", "grape", "frozen")


def parse(*words: str, name: str = "bp") -> RunCLI:
    launch = arguments.read(["--config", f"local_gpt_{name}", *words])
    return RunCLI(launch, [read_config(find_config(config)) for config in launch.configs])


def set_to(**options: object) -> list[str]:
    return [f"--model.init_args.{name}={value}" for name, value in options.items()]


def test_one_argument_per_field_with_its_default() -> None:
    parameters = inspect.signature(LocalGPTModule).parameters
    for field in fields(LocalGPTConfig):
        parameter = parameters[field.name]
        if field.name not in ("vocab_size", "block_size"):
            assert parameter.default == field.default, field.name


def test_every_argument_reaches_the_network() -> None:
    changed: dict[str, Any] = {
        "vocab_size": 7, "block_size": 8, "n_layers": 1, "n_heads": 4, "d_model": 32, "dropout": 0.0, "bias": True,
        "attn_mode": "softmax", "sigmoid_bias_mode": "row", "method": "fa", "ste_sigmoid": True, "ste_gelu": True,
        "freeze_emb": True, "ln_mode": "center_scale", "fuse_attn_local": True, "mlp_topk": 5, "resid_topk": 6,
        "vq_codes": 7, "subspace_rank": 8, "fa_init_mode": "sparse", "fa_sparse_k": 3, "fa_grape": True,
        "fa_grape_n_probe": 4, "gated_blocks": True, "dfa_propagate": False, "dfa_derivative": True, "fa_grape_lr": 0.2,
        "train_affine": False, "freeze_blocks": True, "vq_per_block": True, "seed": 9,
    }  # fmt: skip
    assert set(changed) == {field.name for field in fields(LocalGPTConfig)}
    defaults = asdict(LocalGPTConfig())
    assert all(defaults[name] != value for name, value in changed.items())
    network: Any = LocalGPTModule(**changed, learning_rate=0.01).network
    assert asdict(network.config) == changed


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse(*set_to(mlp_topk=1537, subspace_rank=400, n_heads=5, fuse_attn_local="true", beta1=2))
    text = str(raised.value)
    for said in (
        "model.init_args.mlp_topk (command line): 1537 is out of range; it must be at most 4 · d_model",
        "model.init_args.subspace_rank (command line): 400",
        "model.init_args.n_heads (command line): 5 is out of range; it must divide",
        "model.init_args.fuse_attn_local (command line): true: needs attn_mode",
        "model.init_args.beta1 (command line): 2",
    ):
        assert said in text
    with pytest.raises(ConfigurationError) as raised:
        parse(*set_to(method="hebb", ln_mode="none"))
    text = str(raised.value)
    assert "model.init_args.method (command line): 'hebb' is not one of bp, fa, dfa, sign_sym" in text
    assert "model.init_args.ln_mode (command line): 'none' is not one of" in text


def test_sizes_beyond_any_memory_are_a_mistake_in_the_width() -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse(*set_to(d_model=6 * 10**9, beta1=2))
    text = str(raised.value)
    assert "model.init_args.d_model (command line): " in text
    assert "the network cannot be laid out" in text
    assert "model.init_args.beta1 (command line): 2" in text


@pytest.mark.parametrize("name", NAMES)
def test_shipped_configurations_have_no_idle_setting(name: str) -> None:
    assert parse(name=name).notes() == []


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({"attn_mode": "softmax", "ste_sigmoid": "true", "sigmoid_bias_mode": "row"}, {"ste_sigmoid", "sigmoid_bias_mode"}),
        ({"method": "dfa", "fa_init_mode": "sparse", "fa_grape": "true"}, {"fa_init_mode", "fa_grape"}),
        ({"method": "fa", "fa_sparse_k": 3, "dfa_propagate": "false"}, {"fa_sparse_k", "dfa_propagate"}),
        ({"method": "fa", "fa_init_mode": "sparse", "fa_sparse_k": 3, "seed": 2}, set()),
        ({"fa_grape_lr": 0.5, "fa_grape_n_probe": 3, "seed": 1}, {"fa_grape_lr", "fa_grape_n_probe", "seed"}),
        ({"vq_per_block": "true", "ln_mode": "projected"}, {"vq_per_block", "ln_mode"}),
        ({"attn_mode": "softmax", "fuse_attn_local": "true", "dropout": 0.0}, {"fuse_attn_local"}),
        ({"mlp_topk": 1536, "resid_topk": 384}, {"mlp_topk", "resid_topk"}),
        ({"mlp_topk": 1535, "resid_topk": 383}, set()),
        ({"method": "dfa", "freeze_blocks": "true", "seed": 1}, {"method", "seed"}),
        ({"method": "dfa", "freeze_blocks": "true", "dfa_propagate": "false"}, set()),
        ({"method": "dfa", "dfa_propagate": "false", "ste_sigmoid": "true", "ste_gelu": "true", "ln_mode": "ste"}, {"ste_sigmoid", "ste_gelu"}),
        ({"method": "dfa", "dfa_propagate": "false", "ste_gelu": "true", "dfa_derivative": "true"}, set()),
        ({"method": "fa", "dfa_derivative": "true"}, {"dfa_derivative"}),
        ({"method": "dfa", "freeze_blocks": "true", "dfa_derivative": "true"}, {"method", "dfa_derivative"}),
        ({"method": "dfa", "dfa_propagate": "false", "sigmoid_bias_mode": "learned"}, {"sigmoid_bias_mode"}),
        ({"method": "dfa", "sigmoid_bias_mode": "learned", "ste_gelu": "true"}, set()),
        ({"freeze_blocks": "true", "gated_blocks": "true", "sigmoid_bias_mode": "learned"}, {"gated_blocks", "sigmoid_bias_mode"}),
        ({"method": "fa", "freeze_blocks": "true", "freeze_emb": "true"}, set()),
        ({"method": "fa", "freeze_blocks": "true", "freeze_emb": "true", "train_affine": "false"}, {"method"}),
        ({"freeze_blocks": "true", "freeze_emb": "true", "ste_gelu": "true", "ln_mode": "ste"}, {"ste_gelu", "ln_mode"}),
        ({"method": "dfa", "freeze_blocks": "true", "freeze_emb": "true", "dfa_propagate": "false"}, {"method", "dfa_propagate"}),
    ],
    ids=name_of,
)  # fmt: skip
def test_idle_settings_are_named(options: dict[str, object], idle: set[str]) -> None:
    notes = parse(*set_to(**options)).notes()
    assert sorted(note.split(" ")[0].removeprefix("model.init_args.") for note in notes) == sorted(idle)
    assert all("has no effect" in note for note in notes)


def trained(**options: Any) -> list[Tensor]:
    """Parameters and loss after three steps of AdamW, of a tiny network."""
    torch.manual_seed(2)
    sizes: dict[str, Any] = {"vocab_size": 7, "block_size": 8, "n_layers": 2, "n_heads": 2, "d_model": 16}
    network = LocalGPT(**sizes | {"dropout": 0.0} | options)
    groups = [group for group in network.parameter_groups() if group["params"]]
    optimizer = torch.optim.AdamW(
        [{"params": g["params"], "weight_decay": 0.1 * g["decay"]} for g in groups], lr=0.1
    )
    for seed in range(3):
        tokens = torch.randint(0, 7, (4, 9), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        loss = network(tokens[:, :-1], tokens[:, 1:]).loss
        loss.backward()
        optimizer.step()
    known = LocalGPT(**sizes)
    return [loss.detach(), *(network.get_parameter(name).detach() for name, _ in known.named_parameters())]


CUT = {"method": "dfa", "dfa_propagate": False}
FROZEN = {"freeze_blocks": True, "freeze_emb": True}


@pytest.mark.parametrize(
    ("others", "setting", "is_idle"),
    [
        ({"freeze_blocks": True}, {"method": "dfa"}, True),
        ({"freeze_blocks": True}, {"method": "fa"}, False),
        ({"freeze_blocks": True}, CUT, False),
        (CUT, {"ste_sigmoid": True, "ste_gelu": True}, True),
        (CUT, {"sigmoid_bias_mode": "learned"}, True),
        (CUT, {"ln_mode": "ste"}, False),
        (CUT, {"gated_blocks": True}, False),
        ({}, {"mlp_topk": 64, "resid_topk": 16}, True),
        ({"freeze_blocks": True}, {"gated_blocks": True, "sigmoid_bias_mode": "learned"}, True),
        (FROZEN, {"method": "fa"}, False),
        (FROZEN | {"train_affine": False}, {"method": "fa"}, True),
        (FROZEN | {"train_affine": False}, {"method": "sign_sym"}, True),
        (FROZEN, {"ste_sigmoid": True, "ste_gelu": True, "ln_mode": "ste"}, True),
        (FROZEN, CUT, True),
    ],
    ids=name_of,
)
def test_idle_settings_are_idle(others: dict[str, Any], setting: dict[str, Any], is_idle: bool) -> None:
    same = all(
        relative_error(ours, theirs) <= 1e-5
        for ours, theirs in zip(trained(**others | setting), trained(**others), strict=True)
    )
    assert same == is_idle


def test_configurations_differ_in_the_rule_alone() -> None:
    def content(name: str) -> dict[str, Any]:
        return read_config(find_config(f"local_gpt_{name}")).data

    base = content("bp")
    assert set(NAMES) == {"bp", *RULE_OF}
    for name in NAMES[1:]:
        other = content(name)
        assert other["data"] == base["data"]
        assert other["seed"] == base["seed"]
        for key in ("max_steps", "val_check_interval", "log_every_n_steps"):
            assert other["trainer"][key] == base["trainer"][key]
        shared = base["model"]["init_args"]
        assert {key: other["model"]["init_args"][key] for key in shared} == shared
        extra = {k: v for k, v in other["model"]["init_args"].items() if k not in shared}
        assert extra == RULE_OF[name], name


def test_what_is_said_of_the_parameters() -> None:
    sizes: dict[str, Any] = {"vocab_size": 7, "block_size": 8, "n_layers": 1, "n_heads": 2, "d_model": 16}
    torch.manual_seed(0)
    text = describe_network(LocalGPTModule(**sizes, method="fa", freeze_emb=True).network)
    n_feedback = 12 * 16 * 16 + 7 * 16
    assert f"{15 * 16} frozen" in text
    assert text.endswith(f"{n_feedback:,} fixed feedback entries")
    assert "frozen" not in describe_network(LocalGPTModule(**sizes).network)

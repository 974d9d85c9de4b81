"""A checkpoint's network is not built before its description is known to fit its weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.loading import build, load
from app.models import LanguageModel
from app.models.blueprint import lay_out
from app.models.crystal import CrystalGPT
from app.models.equilibrium import EquilibriumLM
from app.models.gpt import GPT
from app.models.local_gpt import LocalGPT
from app.models.tilelli import TilelliLM
from app.run import checkpoint
from app.run.bounded import Budget, BudgetError
from app.run.errors import ConfigurationError, IntegrityError
from datamodules.tokenizers import CharTokenizer
from tests.support.made_runs import checkpoint_content
from tests.support.memory import measured

TOKENIZER = CharTokenizer("abcdefgh")
GPT_ARGUMENTS = {"vocab_size": 8, "block_size": 16, "n_layers": 2, "n_heads": 2, "d_model": 16}
NETWORKS: dict[type[LanguageModel], dict[str, Any]] = {
    GPT: GPT_ARGUMENTS,
    TilelliLM: {"vocab_size": 8, "d_model": 16, "n_layers": 2, "n_banks": 2, "d_head": 8},
    EquilibriumLM: {"vocab_size": 8, "d_model": 16, "n_layers": 2, "n_heads": 2},
    CrystalGPT: GPT_ARGUMENTS | {"mode": "lowrank", "rank": 4},
    LocalGPT: {"vocab_size": 8, "block_size": 16, "n_layers": 2, "n_heads": 2, "d_model": 16},
}


def write(folder: Path, description: dict[str, Any] | None = None, **state: Any) -> Path:
    """A run directory with the checkpoint of a small GPT, perhaps with another description."""
    network = GPT(**GPT_ARGUMENTS)
    (folder / "checkpoints").mkdir(parents=True)
    TOKENIZER.save(folder / "tokenizer.json")
    content = checkpoint_content(description or network.description(), TOKENIZER.hash, **state)
    content["state_dict"] = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    checkpoint.write(content, folder / "checkpoints" / "best-000001.ckpt")
    return folder


def described(**changes: Any) -> dict[str, Any]:
    return {"class_path": "app.models.gpt.network.GPT", "init_args": GPT_ARGUMENTS | changes}


@pytest.mark.parametrize("class_type", NETWORKS)
def test_a_network_is_laid_out_as_it_is_built(class_type: type[LanguageModel]) -> None:
    arguments = NETWORKS[class_type]
    charged: list[int] = []
    laid = lay_out(lambda: class_type(**arguments), charged.append)
    network = class_type(**arguments)
    assert {p.device.type for p in laid.parameters()} == {"meta"}
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in laid.state_dict().items()} == shapes
    held = [*network.parameters(), *network.buffers()]
    assert sum(charged) >= sum(t.nbytes for t in held) + 1000 * len(list(network.modules()))
    assert network.description() == laid.description()


@pytest.mark.parametrize("class_type", NETWORKS)
def test_an_absurd_size_is_refused_in_little_memory(class_type: type[LanguageModel]) -> None:
    """Each whole number among the arguments, one after the other."""
    arguments = NETWORKS[class_type]
    for name in arguments:
        if type(arguments[name]) is not int:
            continue
        for size in (10_000, 10**9, 10**30):
            description = {
                "class_path": f"{class_type.__module__}.{class_type.__qualname__}",
                "init_args": arguments | {name: size},
            }
            budget = Budget(2_000_000)  # so small that layers without end are told soon
            outcome = measured(lambda d=description, b=budget: lay_out(lambda: build(d), b.charge))
            assert outcome.n_bytes < 32_000_000, (name, size)
            assert outcome.error is None or outcome.error[0] in ("BudgetError", "ConfigurationError"), outcome
            if name in ("n_layers", "d_model") and size > 10_000:
                assert outcome.error is not None


def test_what_is_made_on_another_device_is_counted_before_it_is_made() -> None:
    def codes() -> torch.nn.Module:
        torch.randn(1 << 40, 1 << 10, generator=torch.Generator(), device="cpu")
        raise AssertionError("made")

    with pytest.raises(BudgetError):
        lay_out(codes, Budget(0).charge)
    torch.nn.Linear(1, 1)
    assert not torch.nn.modules.module._global_parameter_registration_hooks


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"n_layers": 10_000},
            IntegrityError,
            "its weights do not fit its own network, which would take more",
        ),
        ({"d_model": 10**9}, IntegrityError, "its weights do not fit its own network, which would take more"),
        ({"d_model": 2 * 10**9}, IntegrityError, "its weights do not fit its own network"),
        (
            {"block_size": 10**9},
            IntegrityError,
            "its weights do not fit its own network, which would take more",
        ),
        ({"vocab_size": 10**12}, IntegrityError, "its network has 1000000000000 symbols, its tokenizer 8"),
        ({"n_layers": 3}, IntegrityError, "its weights do not fit its own network"),
        ({"d_model": 32}, IntegrityError, "its weights do not fit its own network"),
        ({"d_model": "16"}, ConfigurationError, "made by another version"),
        ({"d_model": 16.0}, ConfigurationError, "made by another version"),
        ({"d_model": {"a": {"b": 1}}}, ConfigurationError, "made by another version"),
        ({"n_layers": [2]}, ConfigurationError, "made by another version"),
        ({"n_layers": None}, ConfigurationError, "made by another version"),
        ({"n_heads": 0}, ConfigurationError, "made by another version"),
        ({"dropout": float("nan")}, ConfigurationError, "made by another version"),
        ({"unknown": 1}, ConfigurationError, "made by another version"),
    ],
)
def test_a_description_that_does_not_fit_is_one_message(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    run = write(tmp_path / "run", described(**changes))
    outcome = measured(lambda: load(run))
    assert outcome.error is not None
    assert outcome.error[0] == error.__name__, outcome
    assert said in outcome.error[1]
    assert len(outcome.error[1].splitlines()) <= 2
    assert outcome.n_bytes < 64_000_000


def test_a_checkpoint_loads(tmp_path: Path) -> None:
    loaded = load(write(tmp_path / "run"))
    assert loaded.network.description() == described(
        dropout=0.0, bias=False, tie_weights=True, swiglu=False, head_gates=False
    )
    assert loaded.block_size == 16
    assert loaded.tokenizer.hash == TOKENIZER.hash


def test_another_tokenizer_of_the_same_size_is_refused_with_both_hashes(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    other = CharTokenizer("bcdefghi")
    other.save(run / "tokenizer.json")
    with pytest.raises(ConfigurationError) as caught:
        load(run)
    assert other.hash in str(caught.value)
    assert TOKENIZER.hash in str(caught.value)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"newer archlab \(format 7\); this one reads up to 2"):
        load(write(tmp_path / "run", format=7))


@pytest.mark.parametrize(
    "class_path",
    [
        "app.modelsX.evil", "app.models_evil.GPT", "app.training.GPTModule", "app.models.gpt.network.torch.nn.Linear",
        "app.models.gpt.network.nn", "app.models.gpt.network.next_token_loss", "app.models.gpt.network.Tensor",
        "app.models.gpt.network.GPT.forward", "app.models.gpt.network.__loader__", "os.system", "GPT", "",
    ],
)  # fmt: skip
def test_only_networks_of_allowed_packages_are_built(class_path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"may not be imported|is no language model|another version"):
        build({"class_path": class_path, "init_args": GPT_ARGUMENTS})


def test_trust_in_one_package_is_none_in_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mypkg.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match="may not be imported"):
        build({"class_path": "mypkg.Net", "init_args": {}}, trust_imports=["my"])
    assert not (tmp_path / "mark").exists()

"""The Equilibrium module's own rules."""

from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule

from app import options
from app.models.equilibrium import EquilibriumLM
from app.run import arguments
from app.run.configuration import find_config, read_config
from app.run.errors import ConfigurationError
from app.training import EquilibriumModule, LanguageModelModule
from app.training.command_line import RunCLI
from app.training.modules import ADAPTATION
from app.training.options.hyperparameters import chosen

SMALL: dict[str, Any] = dict(
    vocab_size=7, block_size=8, d_model=8, n_heads=2, n_layers=2, d_ff=12, dropout=0.0
)

DIVERSITY = ("diversity_target", "diversity_weight")
VERDICT = ("verifier_weights", "verifier_sharpness")
CONSTANTS: dict[str, Any] = dict(
    signal_momentum=0.3, init_thresholds=(0.2, 0.7, 1.9), target_fractions=(2.0, 2.0, 3.0, 3.0),
    threshold_momentum=0.45, temperature=3.0, offset_scale=0.6, verifier_weights=(1.0, 0.1, 0.7), verifier_sharpness=1.5,
    diversity_target=0.3, diversity_weight=0.7, fraction_weight=0.4, plastic_rate=0.5, plastic_mask=0.5,
    plastic_noise=0.5, plastic_penalty=3.0, plastic_decay=0.5,
)  # fmt: skip


def test_every_option_reaches_the_network() -> None:
    changed: dict[str, Any] = dict(
        use_attention_residual=False, plastic_hidden=5, n_branches=3, use_verifier=False, max_budget_per_token=3,
        total_budget_ratio=1.5, statistics="lagged", standardize=True, soft="ordinal", shared_router=False,
        enforce_budget=True, budget_order="causal", reprocess_context=True, quantile="histogram",
        capacity_factor=2.0, activation_checkpointing=True, **CONSTANTS,
    )  # fmt: skip
    module = EquilibriumModule(**SMALL, **changed, routing_warmup_steps=7)
    given = module.network._init_args
    assert {name: given[name] for name in changed} == changed
    assert given["warmup_steps"] == 7
    assert module.warmup_steps == 100
    assert EquilibriumModule(**SMALL | {"dropout": 0.1}).network._init_args == (
        EquilibriumLM(**SMALL | {"dropout": 0.1})._init_args
    )


def seen(**constant: Any) -> list[torch.Tensor]:
    """Everything that the network and its adapter compute, from weights that are the same whatever the constants."""
    torch.manual_seed(0)
    # Heads that fall short of the divergence that is asked for.
    constants = {"diversity_target": 0.6} | constant
    network = EquilibriumModule(**SMALL, routing_warmup_steps=0, **constants).network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    idx = torch.randint(0, 7, (4, 8), generator=torch.Generator().manual_seed(1))
    network(idx)
    output = network(idx, idx)
    (100 * output.aux_loss).backward()
    found = [output.aux_loss.detach(), output.logits.detach(), *network.running_state()]
    found += [p.grad for p in network.parameters() if p.grad is not None]
    adapter = network.plastic
    for step in range(2):
        adapter.adapt(
            torch.randn(6, 8, generator=torch.Generator().manual_seed(step)), torch.Generator().manual_seed(2)
        )
        adapter.decay()
    return [*found, *(p.detach() for p in adapter.parameters())]


def test_every_constant_has_an_effect() -> None:
    usual, again = seen(), seen()
    assert all(torch.equal(a, b) for a, b in zip(usual, again, strict=True))
    for name, value in CONSTANTS.items():
        changed = seen(**{name: value})
        assert not all(torch.equal(a, b) for a, b in zip(usual, changed, strict=True)), name


def test_the_two_warm_ups_are_told_apart() -> None:
    def problems(**given: Any) -> list[str]:
        return [str(problem) for problem in options.problems(EquilibriumModule, SMALL | given)]

    assert problems(routing_warmup_steps=-1) == ["routing_warmup_steps = -1: must be at least 0"]
    assert problems(warmup_steps=-1) == ["warmup_steps = -1: must be at least 0"]
    assert problems(total_budget_ratio=0.5, enforce_budget=True)[0].startswith("total_budget_ratio")


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"use_plastic": False}, {"plastic_hidden", "adapt", *ADAPTATION}),
        ({"adapt": False}, {*ADAPTATION}),
        ({"use_branches": False}, {"n_branches", "use_verifier", *VERDICT, *DIVERSITY}),
        ({"n_branches": 1}, {"use_verifier", *VERDICT, *DIVERSITY}),
        ({"use_verifier": False}, {*VERDICT}),
        ({"verifier_sharpness": 0.0}, {"verifier_weights"}),
        ({"diversity_weight": 0.0}, {"diversity_target"}),
        ({"enforce_budget": True}, set()),
        ({"enforce_budget": True, "total_budget_ratio": 4.0}, {"budget_order"}),
        ({"enforce_budget": True, "max_budget_per_token": 2}, {"budget_order"}),
        ({"max_budget_per_token": 5}, {"max_budget_per_token"}),
        ({"n_layers": 1}, {"shared_router", "reprocess_context"}),
        (
            {"n_layers": 1, "use_plastic": False, "use_branches": False},
            {
                "shared_router",
                "reprocess_context",
                "plastic_hidden",
                "adapt",
                "n_branches",
                "use_verifier",
                "capacity_factor",
                *ADAPTATION,
                *VERDICT,
                *DIVERSITY,
            },
        ),
    ],
)
def test_what_has_no_effect_is_said(settings: dict[str, Any], idle: set[str]) -> None:
    defaults = dict(
        use_plastic=True, use_branches=True, n_branches=2, enforce_budget=False, n_layers=6, total_budget_ratio=2.0,
        max_budget_per_token=4, adapt=True, use_verifier=True, verifier_sharpness=4.0, diversity_weight=0.1,
    )  # fmt: skip
    expected = idle | (set() if settings.get("enforce_budget") else {"budget_order"})
    found = options.unused(EquilibriumModule, SMALL | defaults | settings).keys()
    assert found - options.options_of(LanguageModelModule).keys() == expected


def evaluated(
    adapt: bool, n_batches: int = 2, padding: slice = slice(0)
) -> tuple[EquilibriumModule, list[torch.Tensor], list[torch.Tensor]]:
    """The module in the midst of a validation, the logits of its batches, and the plastic tokens of each."""
    torch.manual_seed(0)
    # A rate at which a step on two tokens shows.
    module = EquilibriumModule(**SMALL, adapt=adapt, routing_warmup_steps=0, plastic_rate=0.1)
    with torch.no_grad():
        for parameter in module.network.parameters():  # so that deviations differ
            parameter.add_(0.4 * torch.randn_like(parameter))
    module.network.eval()
    module.on_validation_epoch_start()
    logits, plastic_tokens = [], []
    for seed in range(n_batches):
        idx = torch.randint(0, 7, (4, 8), generator=torch.Generator().manual_seed(seed))
        targets = idx.clone()
        targets[:, padding] = -100
        with torch.inference_mode():
            output = module.network(idx)
            last = output.routing[-1]
            plastic_tokens.append(last.plastic_input[(last.route == 3) & (targets >= 0)].clone())
            module.after_scoring(output, targets)
        logits.append(output.logits)
    return module, logits, plastic_tokens


def weights(module: EquilibriumModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.network.named_parameters()}


def test_a_batch_is_scored_before_it_is_adapted_on() -> None:
    random_state = torch.get_rng_state()
    plain, without, _ = evaluated(adapt=False)
    module, logits, _ = evaluated(adapt=True)
    assert torch.equal(logits[0], without[0])
    assert not torch.equal(logits[1], without[1])
    _, repeated, _ = evaluated(adapt=True)
    assert torch.equal(logits[1], repeated[1])
    torch.set_rng_state(random_state)
    trained = weights(plain)
    differing = {name for name, p in weights(module).items() if not torch.equal(p, trained[name])}
    assert differing == {f"plastic.{layer}.{kind}" for layer in ("down", "up") for kind in ("weight", "bias")}


def test_what_is_saved_is_what_was_trained() -> None:
    plain, module = evaluated(adapt=False)[0], evaluated(adapt=True)[0]
    trained = plain.state_dict()
    assert module.state_dict().keys() == trained.keys()
    assert all(torch.equal(t, trained[name]) for name, t in module.state_dict().items())
    assert not torch.equal(module.network.plastic.up.weight, trained["network.plastic.up.weight"])


@pytest.mark.parametrize("padding", [slice(0), slice(0, 3)], ids=["none", "some"])
def test_a_batch_adapts_on_its_plastic_tokens_then_decays(padding: slice) -> None:
    plain, *_ = evaluated(adapt=False, n_batches=0)
    module, _, tokens = evaluated(adapt=True, n_batches=3, padding=padding)
    assert [len(each) for each in tokens] == ([1, 1, 1] if padding == slice(0) else [0, 1, 1])
    adapter = plain.network.plastic
    for number, each in enumerate(tokens):  # noise of its own for every batch
        adapter.adapt(each, torch.Generator().manual_seed(number))
        adapter.decay()
    for ours, theirs in zip(module.network.plastic.parameters(), adapter.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_trained_weights_are_back_after_an_evaluation(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModelModule, "_finish_evaluation", lambda self, stage: None)
    trained, (module, *_) = weights(evaluated(adapt=False)[0]), evaluated(adapt=True)
    getattr(module, f"on_{split}_epoch_end")()
    assert all(torch.equal(p, trained[name]) for name, p in weights(module).items())
    # The next one draws the same noise again.
    getattr(module, f"on_{split}_epoch_start")()
    assert module._batches_scored == 0


def test_padding_is_not_adapted_to() -> None:
    trained, (module, *_) = weights(evaluated(adapt=False)[0]), evaluated(adapt=True, padding=slice(None))
    assert all(torch.equal(p, trained[name]) for name, p in weights(module).items())


def parse(*words: str) -> RunCLI:
    launch = arguments.read(["--config", "equilibrium_char", *words])
    return RunCLI(launch, [read_config(find_config(config)) for config in launch.configs])


class Sizes(LightningDataModule):
    """What a network takes from the data, and nothing else."""

    vocab_size, block_size = 7, 8


DATA = Sizes()


def test_constants_come_from_a_configuration() -> None:
    words = [
        "--model.init_args.target_fractions",
        "[0.7, 0.2, 0.07, 0.03]",
        "--model.init_args.temperature",
        "5",
    ]
    cli = parse(
        *words, "--model.init_args.verifier_weights", "[1, 0, 0]", "--model.init_args.use_verifier", "false"
    )
    model = cli.build_model(DATA)
    assert model.network._init_args["target_fractions"] == (0.7, 0.2, 0.07, 0.03)
    assert model.network._init_args["temperature"] == 5.0
    notes = "\n".join(cli.notes())
    assert "verifier_weights" in notes
    assert "has no effect with use_verifier: false" in notes
    assert (
        not {"target_fractions", "verifier_weights"}
        - chosen(yaml.safe_load(cli.parser.dump(cli.config)), model=model).keys()
    )
    defaults = parse()
    made = chosen(yaml.safe_load(defaults.parser.dump(defaults.config)), model=defaults.build_model(DATA))
    assert not made.keys() & CONSTANTS.keys()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("target_fractions", "[0.5, 0.5]", "target_fractions"),
        ("target_fractions", "[0, 0, 0, 0]", "must be four numbers, not all 0"),
        ("init_thresholds", "[2, 1, 3]", "must be three ascending numbers"),
        ("signal_momentum", "0", r"signal_momentum.*must lie in \(0, 1\]"),
        ("diversity_target", "0.7", r"must lie in \[0, 0.6931"),
    ],
)
def test_constants_out_of_range_are_refused(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse(f"--model.init_args.{name}", value).build_model(DATA)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_running_statistics_are_not_kept_in_half_precision(precision: str) -> None:
    cli = parse("--trainer.precision", precision)
    if precision == "bf16-mixed":
        cli.build_model(DATA)
        return
    with pytest.raises(ConfigurationError, match=r"trainer.precision \(command line\): .*use bf16-mixed"):
        cli.build_model(DATA)


def test_a_network_beyond_the_memory_is_a_mistake_in_the_configuration() -> None:
    cli = parse("--model.init_args.d_ff", str(10**12))
    with pytest.raises(
        ConfigurationError, match=r"parameters, [\d,.]+ GiB, for which this machine has no memory"
    ):
        cli.build_model(DATA)

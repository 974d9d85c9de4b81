"""The original parts, against recorded inputs, weights, outputs and gradients."""

import torch

from app.models.equilibrium import (
    AttentionResidual,
    BranchHeads,
    EquilibriumSignal,
    PlasticAdapter,
    RoutingDecision,
    TokenEnergyBudget,
    Verifier,
)
from tests import tolerances
from tests.parity import load_fixture, relative_error


def test_signal() -> None:
    fixture = load_fixture("equilibrium_signal")
    recorded = fixture.tensors
    signal = EquilibriumSignal(**fixture.case["kwargs"])
    for step in range(fixture.case["train_steps"]):
        output = signal(recorded[f"x{step}"])
        assert relative_error(output.deviation, recorded[f"deviation{step}"]) <= tolerances.OUTPUT
        assert torch.equal(output.warming_up, recorded[f"warming_up{step}"])
        for name in ("running_mean", "running_var"):
            assert relative_error(getattr(signal, name), recorded[f"{name}{step}"]) <= tolerances.OUTPUT, name
    x = recorded["x_eval"].requires_grad_()
    deviation = signal.eval()(x).deviation
    deviation.backward(recorded["grad_deviation_eval"])
    assert relative_error(deviation, recorded["deviation_eval"]) <= tolerances.OUTPUT
    assert relative_error(x.grad, recorded["grad.x_eval"]) <= tolerances.GRADIENT
    assert int(signal.num_batches_tracked) == fixture.case["train_steps"]


def test_routing() -> None:
    fixture = load_fixture("equilibrium_routing")
    recorded = fixture.tensors
    router = RoutingDecision()

    def compare(suffix: str) -> None:
        deviation = recorded[f"deviation{suffix}"].clone().requires_grad_()
        output = router(deviation)
        assert torch.equal(output.route, recorded[f"route{suffix}"])
        for name in ("probabilities", "thresholds"):
            found, expected = getattr(output, name), recorded[f"{name}{suffix}"]
            assert relative_error(found, expected) <= tolerances.OUTPUT, name
        if f"grad_probabilities{suffix}" not in recorded:
            return
        router.zero_grad()
        output.probabilities.backward(recorded[f"grad_probabilities{suffix}"])
        assert relative_error(deviation.grad, recorded[f"grad.deviation{suffix}"]) <= tolerances.GRADIENT
        offsets = router.threshold_offsets.grad
        assert relative_error(offsets, recorded[f"grad.threshold_offsets{suffix}"]) <= tolerances.GRADIENT
        moved = recorded[f"running_thresholds{suffix}"]
        assert relative_error(router.running_thresholds, moved) <= tolerances.OUTPUT

    router.eval()
    compare("_untracked")
    with torch.no_grad():
        router.threshold_offsets.copy_(recorded["threshold_offsets"])
    router.train()
    for step in range(fixture.case["train_steps"]):
        compare(str(step))
    router.eval()
    compare("_eval")
    names = {"target_cdf", "running_thresholds", "num_batches_tracked", "threshold_offsets"}
    assert set(router.state_dict()) == names


def test_budget() -> None:
    fixture = load_fixture("equilibrium_budget")
    probabilities = fixture.tensors["probabilities"]
    for largest, ratio in fixture.case["cases"]:
        budget = TokenEnergyBudget(largest, ratio)(torch.zeros(probabilities.shape[:2]), probabilities)
        expected = fixture.tensors[f"budget_{largest}_{str(ratio).replace('.', '_')}"]
        assert torch.equal(budget, expected), (largest, ratio)


def test_attention_residual() -> None:
    fixture = load_fixture("equilibrium_attention_residual")
    recorded = fixture.tensors
    module = AttentionResidual(**fixture.case["kwargs"])
    module.load_state_dict(fixture.part("weight."))
    z, history = recorded["z"].requires_grad_(), recorded["history"].requires_grad_()
    y = module(z, history)
    y.backward(recorded["grad_y"])
    assert relative_error(y, recorded["y"]) <= tolerances.OUTPUT
    gradients = {"z": z.grad, "history": history.grad} | {n: p.grad for n, p in module.named_parameters()}
    assert gradients.keys() == fixture.part("grad.").keys()
    for name, gradient in gradients.items():
        assert relative_error(gradient, recorded[f"grad.{name}"]) <= tolerances.GRADIENT, name


def test_branches_and_verifier() -> None:
    fixture = load_fixture("equilibrium_branches")
    recorded = fixture.tensors
    heads = BranchHeads(**fixture.case["kwargs"])
    heads.load_state_dict(fixture.part("weight."))
    hidden = recorded["hidden"].requires_grad_()
    branch_logits, diversity = heads(hidden)
    judged = Verifier()(branch_logits)
    objective = (judged.logits * recorded["grad_logits"]).sum()
    (objective + fixture.case["diversity_factor"] * diversity).backward()
    found = {"branch_logits": branch_logits, "diversity_loss": diversity} | judged._asdict()
    for name, value in found.items():
        assert relative_error(value, recorded[name]) <= tolerances.OUTPUT, name
    gradients = {"hidden": hidden.grad} | {n: p.grad for n, p in heads.named_parameters()}
    assert gradients.keys() == fixture.part("grad.").keys()
    for name, gradient in gradients.items():
        assert relative_error(gradient, recorded[f"grad.{name}"]) <= tolerances.GRADIENT, name


def test_plastic_adapter() -> None:
    fixture = load_fixture("equilibrium_plastic")
    adapter = PlasticAdapter(**fixture.case["kwargs"])
    adapter.load_state_dict(fixture.part("weight."))
    assert relative_error(adapter(fixture.tensors["x"]), fixture.tensors["y"]) <= tolerances.OUTPUT

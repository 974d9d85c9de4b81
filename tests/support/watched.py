"""The smallest runs with everything that watches them, one per architecture."""

from pathlib import Path
from typing import Any

from tests.support import tiny


def _callback(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"callbacks.{name}", "init_args": arguments}


#: class, arguments and watchers of its own; no dropout, and no trits that a rounding could flip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "tilelli": (
        "TilelliModule",
        {
            "d_model": 16, "n_layers": 2, "n_banks": 12, "d_head": 8, "kernel_size": 3, "wide_kernel_size": 7,
            "quantize": False,
        },
        [_callback("BankBalance"), _callback("RouteFractions")],
    ),
    "equilibrium": (
        "EquilibriumModule",
        {
            "d_model": 16, "n_heads": 2, "n_layers": 3, "d_ff": 24, "dropout": 0.0, "statistics": "lagged",
            "standardize": True, "soft": "ordinal", "shared_router": False, "reprocess_context": True,
            "quantile": "histogram", "enforce_budget": True, "capacity_factor": 1.0, "routing_warmup_steps": 2,
        },
        [_callback("RunningThresholds"), _callback("RouteFractions"), _callback("EnergyBudget")],
    ),
    "local_gpt": (
        "LocalGPTModule",
        {
            "n_layers": 2, "n_heads": 2, "d_model": 16, "dropout": 0.0, "method": "fa", "fa_grape": True,
            "fa_grape_n_probe": 4,
        },
        [_callback("GradientAlignment", every_n_steps=2, n_windows=6)],
    ),
    "crystal": (
        "CrystalGPTModule",
        {"d_model": 16, "n_layers": 2, "n_heads": 2, "rank": 2},
        [_callback("CrystalSpectrum")],
    ),
    "gpt": (
        "GPTModule",
        {"d_model": 16, "n_layers": 2, "n_heads": 2},
        [_callback("GammaTrajectory", every_n_steps=3)],
    ),
}  # fmt: skip


def configuration(architecture: str, text: Path, **changes: Any) -> dict[str, Any]:
    """Eight steps, each second one logged, and a validation after the fourth and the last.

    Args:
        architecture: one of :data:`ARCHITECTURES`.
        text: file to learn.
        changes: as of :func:`tests.support.tiny.changed`.
    """
    name, arguments, own = ARCHITECTURES[architecture]
    made = tiny.tilelli(text, checkpoint_every_n_steps=100)
    made["model"] = {
        "class_path": f"app.training.{name}",
        "init_args": arguments | {"learning_rate": 3e-3, "warmup_steps": 2},
    }
    made["data"]["init_args"]["batch_size"] = 8
    made["trainer"] |= {
        "max_steps": 8,
        "val_check_interval": 4,
        "log_every_n_steps": 2,
        "callbacks": [
            *own,
            # Limits at which these healthy networks have something to say.
            _callback("RunHealth", dead_steps=1, max_share=0.51, min_entropy=0.49),
            _callback("DepthTimeFigures"),
            _callback("TextSamples", max_new_tokens=4),
            _callback("Throughput"),
        ],
    }
    return tiny.changed(made, changes)

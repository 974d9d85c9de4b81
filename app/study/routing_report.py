"""All that ``app study routing`` has found, as plain values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from app.analysis.crystallize_statistics import bootstrap_means, interval
from app.analysis.routing import associations
from app.analysis.routing.routers import Choices, Router, Windows, row_cosine
from app.study.routing import Trained, against_controls, of_network, specialised


def routing_report(
    network: Any,
    of: list[Router],
    own: Choices,
    windows: Windows,
    results: Mapping[str, Any],
    trained: Trained,
    margin: float,
    seed: int,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that table, pictures and page say.

    Args:
        network: that was looked into.
        of: its routers.
        own: what they chose.
        windows: the text.
        results: ``effects`` by router, ``retention`` by choices kept (losses by window), ``saturation`` by step.
        trained: the runs' final losses.
        margin: nats per token.
        seed: of bootstrap and shuffles.
        about: model, text and settings, kept as they are.

    Returns:
        ``about``, ``margin``, ``baseline`` (loss), ``routers`` (of each what it chooses, load, effect with interval, p,
        verdict, cosine of its rows, what tells its choice), ``specialised``, ``coactivation`` and ``lifts``,
        ``saturation``, ``retention``, ``controls``, ``notes`` and ``verdict``, in a sentence or two.
    """
    chosen = {router.name: own.chosen[router.name].numpy() for router in of}
    worth = specialised([results["effects"][router.name] for router in of], margin, seed)
    entries = [
        {
            "name": router.name,
            "layer": router.layer,
            "what": router.what,
            "n_choices": router.n_choices,
            "load": associations.load(chosen[router.name], router.n_choices),
            **found._asdict(),
            "row_cosine": row_cosine(network, router),
            "told_by": _told_by(chosen[router.name], own, windows, seed),
        }
        for router, found in zip(of, worth, strict=True)
    ]  # fmt: skip
    report = {
        **about,
        "margin": margin,
        "baseline": float(own.losses.mean()),
        "routers": entries,
        "specialised": of_network(worth),
        "coactivation": associations.coactivation(chosen),
        "lifts": associations.lifts(chosen, {router.name: router.n_choices for router in of}),
        "saturation": [
            {"step": int(step), "routers": found} for step, found in sorted(results["saturation"].items())
        ],
        "retention": [
            _retained(int(n), losses, own, max(router.n_choices for router in of), seed)
            for n, losses in sorted(results["retention"].items())
        ],
        "own": trained.own,
        "controls": [],
        "notes": list(trained.notes),
    }
    if trained.controls:
        try:
            report["controls"] = against_controls(trained.own, trained.controls, margin)
        except ValueError:
            report["notes"].append("one seed of each run has no spread: two of one and more can be judged")
    report["verdict"] = verdict(report)
    return report


def verdict(report: Mapping[str, Any]) -> str:
    """What the choices are worth, in a sentence or two."""
    entries = report["routers"]
    counts = {
        name: sum(e["verdict"] == name for e in entries) for name in ("specialised", "not", "undecided")
    }
    what = f"{entries[0]['what']}s"
    best = max(entries, key=lambda entry: entry["effect"])
    text = (
        f"{counts['specialised']} of {len(entries)} routers are specialised at a margin of {report['margin']:g} nats, "
        f"{counts['not']} are not, {counts['undecided']} undecided; most at {best['name']} ({best['effect']:+.4f})."
    )
    if not report["controls"]:
        return f"{text} Whether the {what} are useful takes runs without a router (--controls)."
    said = "; ".join(
        f"{control['verdict']} against {control['control']} ({control['difference']:+.4f}"
        + (f", {control['seeds']} seeds would decide)" if control["seeds"] else ")")
        for control in report["controls"]
    )
    return f"{text} The choice of {what} is {said}."


def _told_by(chosen: np.ndarray, own: Choices, windows: Windows, seed: int) -> dict[str, Any]:
    """How much of a choice its token, the next one, the predicted one, and labels of a task tell."""
    known = {"input": windows.idx, "next": windows.targets, "predicted": own.predicted, **windows.labels}
    found = {}
    for name, numbers in known.items():
        is_known = numbers >= 0
        found[name] = associations.explained(chosen[is_known.numpy()], numbers[is_known].numpy(), seed)
    return found


def _retained(n: int, losses: Any, own: Choices, n_choices: int, seed: int) -> dict[str, Any]:
    """What keeping ``n`` choices of each router costs, paired by window."""
    cost = (torch.tensor(losses, dtype=torch.float64) - own.losses).numpy()
    return {
        "kept": n,
        "share": n / n_choices,
        "cost": float(cost.mean()),
        "interval": interval(bootstrap_means(cost[None], seed)[:, 0]),
    }

"""``app fit --dry_run``: what a run would take, and nothing of it kept."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.run import arguments, launching, ranks
from app.run.errors import ExitCode
from app.run.without_packages import quick_framework

if TYPE_CHECKING:
    from app.training.estimate import Cost

FLAG = "--dry_run"


def run(words: list[str]) -> int:
    """Builds the run, makes a few of its steps in memory, and prints sizes, memory and time.

    No run directory is made, no lock taken, no checkpoint read but that of ``--init_from``; a data set that is not
    there yet is prepared, because nothing is known without it. With several devices, one device's share of a step is
    measured on one of them.

    Args:
        words: the command line without the flag.

    Returns:
        The exit code.
    """
    if ranks.number() > 0:
        return int(ExitCode.DONE)
    launch = arguments.read(words)
    files = launching.files_of(launch)

    from app.run.randomness import seed_initialisation

    with quick_framework(launch.trust_imports):
        from app.training.command_line import RunCLI
        from app.training.estimate import device_name

    cli = RunCLI(launch, files)
    data = cli.build_data()
    seed_initialisation(cli.config["seed"])
    model = cli.build_model(data)
    notes = _begin(model, launch.init_from)
    asked = cli.build_trainer([], [], [], Path.cwd(), with_watchers=False)
    data.check_placement(asked.world_size, asked.accumulate_grad_batches)
    n_devices, batch_size = asked.world_size, data.batch_size
    for note in [*notes, *cli.notes(), *data.notes()]:
        print(f"note     {note}")
    _print_parameters(model.network)
    _print_data(data, asked.max_steps, sum(p.numel() for p in model.network.parameters()))

    if n_devices > 1:
        data.batch_size //= n_devices
    cost, trainer = measured(cli, model, data)
    micro_batch = data.batch_size // trainer.accumulate_grad_batches
    _print_cost(
        cost, model.optimizer_name, micro_batch, device_name(trainer), trainer.strategy.root_device.type
    )
    _print_time(cost, asked.max_steps, batch_size * data.block_size, n_devices)
    print("dry run  nothing was written; leave out --dry_run to train")
    return int(ExitCode.DONE)


def measured(cli: Any, model: Any, data: Any) -> "tuple[Cost, Any]":
    """What a few steps on one device cost, and the trainer that made them; nothing is written.

    Args:
        cli: the configuration, whose trainer section is changed for it.
        model: is trained for these steps.
        data: its text read.
    """
    from app.training.estimate import MAX_STEPS, CostMeter, Enough

    meter = CostMeter()
    # Of the run's own settings only those are changed that would start other processes or write.
    alone = {
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "max_steps": MAX_STEPS + 2,
        "limit_val_batches": 0,
    }
    for name, value in alone.items():
        cli.config["trainer"][name] = value
    trainer = cli.build_trainer([meter], [], [], Path.cwd(), with_watchers=False)
    with contextlib.suppress(Enough):
        trainer.fit(model, datamodule=data)
    return meter.cost, trainer


def _begin(model: Any, init_from: str | None) -> list[str]:
    """Takes the weights that the run would begin with; all that it would be refused for is refused here."""
    if init_from is None:
        notes: list[str] = model.begin(None)
        return notes
    from app.training.first_weights import take_weights
    from app.training.run_callbacks.retention import VerifiedCheckpointIO

    path = launching.weights_of(init_from)
    content = VerifiedCheckpointIO().load_checkpoint(path)
    return take_weights(model, content["state_dict"], f"--init_from {path}")


def _print_parameters(network: Any) -> None:
    from app.training.estimate import parts

    rows = parts(network)
    width = max(len(name) for name in ("all", *(row.name for row in rows))) + 2
    kinds = max(len(row.kind) for row in rows) + 2
    print(f"model    {'part':<{width}}{'':<{kinds}}{'parameters':>14}{'trainable':>14}{'frozen':>12}")
    for row in rows:
        numbers = f"{row.trainable + row.frozen:>14,}{row.trainable:>14,}{row.frozen:>12,}"
        if row.is_tied:
            numbers = f"{'tied':>14}{'':>26}"
        print(f"         {row.name:<{width}}{row.kind:<{kinds}}{numbers}".rstrip())
    outer = [row for row in rows if not row.name.startswith(" ")]
    trainable, frozen = sum(row.trainable for row in outer), sum(row.frozen for row in outer)
    name = f"{'all':<{width}}{type(network).__name__:<{kinds}}"
    print(f"         {name}{trainable + frozen:>14,}{trainable:>14,}{frozen:>12,}")


def _print_data(data: Any, max_steps: int, n_parameters: int) -> None:
    tokens = max_steps * data.tokens_per_step
    print(f"data     {data.describe()}")
    per_epoch = data.tokens_per_epoch
    print(
        f"tokens   {max_steps:,} steps x {data.batch_size} windows x {data.block_size} = {tokens:,}: "
        f"{tokens / n_parameters:.3g} per parameter"
        + (f", {tokens / per_epoch:.3g} epochs" if per_epoch else "")
    )


def _print_cost(cost: "Cost", optimizer: str, micro_batch: int, device: str, kind: str) -> None:
    together = cost.weights + cost.gradients + cost.optimizer + cost.activations
    lines = [
        (cost.weights, "weights", "parameters and buffers"),
        (cost.gradients, "gradients", ""),
        (cost.optimizer, "optimizer", f"state of {optimizer}"),
        (
            cost.activations,
            "activations",
            f"measured: kept by one micro-batch of {micro_batch} windows for its backward pass",
        ),
        (together, "together", "temporaries of single operations come on top"),
    ]
    if kind == "cuda":
        lines.append((cost.peak, "peak", "measured: most that tensors took at once"))
    else:
        lines.append(
            (cost.peak, "process", "measured: most that this process took, Python and libraries included")
        )
    print(f"memory   per device, on {device}")
    for n_bytes, name, remark in lines:
        print(f"         {name:<12}{size(n_bytes):>12}   {remark}".rstrip())


def _print_time(cost: "Cost", max_steps: int, tokens_per_step: int, n_devices: int) -> None:
    seconds = cost.step_seconds
    spread = f"{1000 * min(cost.seconds):,.4g} to {1000 * max(cost.seconds):,.4g}"
    print(
        f"time     {1000 * seconds:,.4g} ms per step (median of {len(cost.seconds)} after the first, {spread}), "
        f"{tokens_per_step / seconds:,.0f} tokens/s"
    )
    print(
        f"         {max_steps:,} steps: {duration(seconds * max_steps)}, if every step takes as long as these"
    )
    left_out = "validation, checkpoints and watchers"
    if n_devices > 1:
        left_out += f", and what {n_devices} devices say to each other"
    print(f"         without {left_out}")


def size(n_bytes: int) -> str:
    """``1536`` → ``1.50 KiB``."""
    value, units = float(n_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"


def duration(seconds: float) -> str:
    """``5400`` → ``1.5 hours``; short ones in minutes as well."""
    number = seconds / 3600
    hours = f"{number:,.0f} hours" if number >= 99.5 else f"{number:.2g} hours"  # never 1.2e+02
    return hours if seconds >= 3600 else f"{hours} ({seconds / 60:.2g} minutes)"

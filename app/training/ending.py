"""What a person is told when a run has come to its end."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from app.run.directory import RunDirectory
from app.run.terminal import clock, say
from app.training.counts import print_counts
from app.training.run_callbacks.weight_averaging import held_weights


def print_ending(
    figures: Mapping[str, Any], trainer: Trainer, directory: RunDirectory, ended_by: str, writes: bool
) -> None:
    """Says how a run ended and what can be done with it.

    Args:
        figures: of its summary.
        trainer: of the run.
        directory: of the run.
        ended_by: what has ended it before its last step; empty for nothing.
        writes: whether it can generate text.
    """
    say("finished", f"step {figures['step']:,} after {clock(figures['launch/seconds'])}")
    if ended_by:
        say("ended", f"before step {trainer.max_steps:,} by {ended_by}")
    for weights in held_weights(trainer).values():
        say(
            "weights",
            f"{weights}, by app validate and app generate too; checkpoints hold the trained ones beside",
        )
    if "val/loss" in figures:
        line = f"validation {figures['val/loss']:.4f} nats"
        if "val/bpb" in figures:
            line += f", {figures['val/bpb']:.4f} bits per byte"
        if "val/word_perplexity" in figures:
            line += f", {figures['val/word_perplexity']:.1f} word perplexity"
        if figures.get("val/unknown_share"):
            line += f", {figures['val/unknown_share']:.2%} of its tokens being unknown words"
        say("loss", line)
    if "val/accuracy" in figures:
        say("answers", f"{figures['val/accuracy']:.2%} of {figures['val/tokens']:,.0f} are right")
    print_counts(figures["baseline/count_loss"], figures["baseline/count_order"], figures.get("val/loss"))
    if figures["samples/known_word_share"] is not None:
        share, n_words = figures["samples/known_word_share"], figures["samples/n_words"]
        of_counts = figures["baseline/count_known_word_share"]
        beside = "" if of_counts is None else f"; of the counts' {of_counts:.0%}"
        say(
            "samples",
            f"{share:.0%} of {n_words} generated words of four letters and more occur in the text{beside}",
        )
    if (picture := directory.figures / "learning_curve.png").exists():
        say("picture", str(picture))
    say("next", f"app validate {directory}")
    commands = ("app generate {}",) if writes else ()
    for command in (*commands, "app report {}", "tensorboard --logdir {} --host 127.0.0.1"):
        say("", command.format(directory))

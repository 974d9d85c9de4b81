"""Makes the steps of a run again and holds what comes out against everything that the run recorded."""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.run.arguments import Launch
from app.run.configuration import ConfigFile
from app.run.directory import RunDirectory
from app.run.errors import ConfigurationError
from app.run.history import configuration_of, launches
from app.run.verification import Content, Finding, Recorded, checkpoints_of
from app.training.command_line import RunCLI
from app.training.past_steps import Also, PastStep, PastSteps

#: parts of a checkpoint that the steps before it decide alone
COMPUTED = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "nonfinite")


class Recomputation:
    """Recomputes a run.

    Args:
        run: its directory.
        trusted: import prefixes of somebody's own code.
        rows: of its table.

    Attributes:
        findings: what is not as it was recorded.
        compared: what was compared: steps, validations and checkpoints, in the order of their steps.
    """

    def __init__(self, run: RunDirectory, trusted: Sequence[str], rows: Recorded):
        self.run = run
        self.trusted = list(trusted)
        self.rows = rows
        self.findings: list[Finding] = []
        self.compared: dict[str, list[Any]] = {"steps": [], "validations": [], "checkpoints": []}

    def require_same_place(self) -> None:
        """Refuses where equal steps need not have equal bits.

        Raises:
            ConfigurationError: the run was made on another device, by another version of PyTorch, or not reproducibly.
        """
        here = str(torch.__version__)
        for launch in launches(self.run):
            place = launch.place
            device, version = str(place.get("device", "cpu")), str(place.get("torch", here))
            is_here = device == "cpu" or (
                torch.cuda.is_available() and torch.cuda.get_device_name() == device
            )
            if not is_here or version != here or place.get("reproducible") is False:
                exactly = "" if place.get("reproducible", True) else ", with fast_nondeterministic"
                raise ConfigurationError(
                    f"{self.run}: was made on {device} with torch {version}{exactly}; its steps have equal bits only "
                    f"there (this is torch {here}); app validate compares its loss anywhere"
                )

    def check_data(self) -> None:
        """Holds text and tokenizer against what the launches saw."""
        last = launches(self.run)[-1]
        file = ConfigFile(self.run.config, configuration_of(self.run, last), {})
        data = RunCLI(Launch(trust_imports=self.trusted), [file], trains=False).build_data()
        seen, now = dict(last.data or {}), data.fingerprint
        for key in sorted({*seen} & {*now}):
            if seen[key] != now[key]:
                self.findings.append(Finding("data", f"{key} is {now[key]!r}, and the run saw {seen[key]!r}"))
        if data.tokenizer is not None:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "tokenizer.json"
                data.tokenizer.save(copy)
                kept = self.run.tokenizer.read_bytes() if self.run.tokenizer.is_file() else b""
                if copy.read_bytes() != kept:
                    self.findings.append(Finding("tokenizer.json", "is not the tokenizer of the text"))

    def make(self, steps: Collection[int], from_first: bool) -> None:
        """Makes steps again and compares them, and on the way every validation and every kept checkpoint.

        Args:
            steps: numbers of the steps.
            from_first: whether to begin with the first weights in place of the nearest checkpoint.
        """
        kept = [found for found in checkpoints_of(self.run) if isinstance(found, Content)]
        by_step: dict[int, list[Content]] = {}
        for content in kept:
            by_step.setdefault(content.step, []).append(content)

        def see_state(step: int, content: dict[str, Any]) -> None:
            for found in by_step[step]:
                self.compared["checkpoints"].append(found.name)
                self._compare_state(found, content)

        also = Also(True, self._see_validation, by_step, see_state)
        PastSteps(self.run, self.trusted, also=also, from_first=from_first).make(steps, self._see)

    def _see(self, step: PastStep) -> bool:
        row = self.rows.training.get(step.step)
        if row is not None:
            self.compared["steps"].append(step.step)
            self._compare_row(step.step, step.figures, row)
        return False

    def _see_validation(self, step: int, figures: dict[str, float]) -> None:
        row = self.rows.validation.get(step)
        if row is not None:
            self.compared["validations"].append(step)
            self._compare_row(step, figures, row)

    def _compare_row(self, step: int, figures: dict[str, float], row: dict[str, float]) -> None:
        for key in figures:
            ours, theirs = figures[key], row.get(key)
            if (
                key.endswith("/tokens")
                or ours == theirs
                or (theirs is not None and ours != ours and theirs != theirs)
            ):
                continue
            said = "nothing is" if theirs is None else f"{theirs!r} is"
            self.findings.append(
                Finding(f"metrics.csv, step {step}", f"{key}: {said} recorded, and {ours!r} comes out")
            )

    def _compare_state(self, found: Content, content: dict[str, Any]) -> None:
        wrong = [
            difference
            for part in COMPUTED
            for difference in differences(found.content.get(part), content.get(part), part)
        ]
        if wrong:
            more = f"; {len(wrong) - 3} more" if len(wrong) > 3 else ""
            self.findings.append(Finding(found.name, f"{'; '.join(wrong[:3])}{more}"))


def differences(recorded: Any, computed: Any, place: str = "") -> Iterator[str]:
    """Every place at which what was recorded is not, to the bit, what was computed."""
    if isinstance(recorded, Tensor) and isinstance(computed, Tensor):
        if recorded.shape != computed.shape or recorded.dtype != computed.dtype:
            theirs_is = f"{tuple(computed.shape)} of {computed.dtype}"
            yield f"{place} is {tuple(recorded.shape)} of {recorded.dtype}, not {theirs_is}"
            return
        ours, theirs = (x.reshape(-1, 1).view(torch.uint8) for x in (recorded, computed))
        n_wrong = int((ours != theirs).any(1).sum())
        if n_wrong:
            yield f"{place} is not what its steps compute, in {n_wrong:,} of {recorded.numel():,} values"
    elif isinstance(recorded, dict) and isinstance(computed, dict):
        yield from (
            f"{place}.{key} is only in one of the two" for key in sorted({*recorded} ^ {*computed}, key=str)
        )
        for key in recorded:
            if key in computed:
                yield from differences(recorded[key], computed[key], f"{place}.{key}")
    elif (
        isinstance(recorded, list | tuple)
        and isinstance(computed, list | tuple)
        and len(recorded) == len(computed)
    ):
        for index, (ours, theirs) in enumerate(zip(recorded, computed, strict=True)):
            yield from differences(ours, theirs, f"{place}.{index}")
    elif recorded != computed:
        yield f"{place} is {recorded!r:.60}, and {computed!r:.60} comes out"

"""Jobs of a study whose process takes a moment and leaves what a run leaves."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from app.study.display import LiveTable
from app.study.engine import Engine
from app.study.jobs import Job
from app.study.plan import Row

#: writes what a run leaves, after some seconds; the third argument says how it ends
RUN = """
import json, pathlib, signal, sys, time
run, seconds, how, loss = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3], float(sys.argv[4])
run.mkdir(parents=True, exist_ok=True)
def status(state, code, reason=""):
    (run / "status.json").write_text(json.dumps({"state": state, "step": 5, "exit_code": code, "reason": reason}))
def leave(*_):
    status("stopped", 143, "SIGTERM"); sys.exit(143)
signal.signal(signal.SIGTERM, leave)
(run / "run.json").write_text(json.dumps({"launches": [{"command": ["app", "fit"], "device": "cpu"}]}))
(run / "metrics.csv").write_text("step,speed/seconds\\n5,2.5\\n")
status("running", None)
time.sleep(seconds)
if how == "fail":
    print("error: nothing to train on"); sys.exit(2)
(run / "summary.json").write_text(json.dumps({"val/loss": loss, "parameters": 10, "tokens_seen": 50, "flops": 1e9, "launch/seconds": time.time()}))
status("finished", 0)
"""


class Short(Job):
    """A job whose process takes a moment."""

    @property
    def process(self) -> list[str]:
        how = self.row.values.get("how", "finish")
        loss = float(self.row.values["loss"]) + float(self.row.values.get("per_seed", 0.001)) * self.seed
        return [
            sys.executable,
            "-c",
            RUN,
            str(self.run),
            str(self.row.values.get("seconds", 0.0)),
            how,
            str(loss),
        ]


def jobs(folder: Path, seeds: Sequence[int] = (1, 2), **rows: dict[str, object]) -> list[Job]:
    made = [Row(name, name, ("gpt_char",), {"loss": 1.5} | values) for name, values in rows.items()]
    return [Short(row, seed, folder, {}) for row in made for seed in seeds]


def engine(n_slots: int = 2) -> Engine:
    return Engine(n_slots, [], LiveTable({}, stream=open(os.devnull, "w")))

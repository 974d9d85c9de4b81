"""Two hosts in one machine: network namespaces with a cable between them, and a torchrun on each."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.test_distributed import endless
from tests.support import runs
from tests.support.application import environment

pytestmark = [pytest.mark.process, pytest.mark.stress]

NAMES = ("a", "b")
ADDRESSES = ("10.199.83.1", "10.199.83.2")


def space(name: str) -> str:
    return f"archlab-{os.getpid()}-{name}"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two network namespaces, joined."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs the commands ip and unshare")
    try:
        try:
            ip("netns", "add", space("a"))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs the right to make network namespaces ({error.stderr.strip()})")
        ip("netns", "add", space("b"))
        ip(
            "link",
            "add",
            "veth0",
            "netns",
            space("a"),
            "type",
            "veth",
            "peer",
            "name",
            "veth0",
            "netns",
            space("b"),
        )
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", space(name), "addr", "add", f"{address}/30", "dev", "veth0")
            for device in ("lo", "veth0"):
                ip("-n", space(name), "link", "set", device, "up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", space(name)], capture_output=True)


def torchrun(number: int, folder: Path, launch: str, *words: object) -> subprocess.Popen:
    """One host's part, in a group of its own; what it says goes to files."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"),
        *("--rdzv_backend", "c10d", "--rdzv_id", launch, "--rdzv_endpoint", f"{ADDRESSES[0]}:29400"),
        *(
            "--local_addr",
            ADDRESSES[number],
            "-m",
            "app",
            "fit",
            "--config",
            "config.yaml",
            "--run_dir",
            "run",
        ),
        *(
            "--resume",
            "auto",
            "--trainer.accelerator",
            "cpu",
            "--trainer.devices",
            "1",
            "--trainer.num_nodes",
            "2",
        ),
    ]
    known = "".join(f"{address} node-{name}\n" for name, address in zip(NAMES, ADDRESSES, strict=True))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
    inside = 'mount --bind hosts /etc/hosts && hostname "$0" && exec "$@"'
    isolated = [
        "ip",
        "netns",
        "exec",
        space(NAMES[number]),
        "unshare",
        "--uts",
        "--mount",
        "sh",
        "-c",
        inside,
    ]
    return subprocess.Popen(
        [*isolated, f"node-{NAMES[number]}", *command, *map(str, words)],
        cwd=folder,
        env=environment() | {"GLOO_SOCKET_IFNAME": "veth0"},
        stdout=(folder / f"{launch}-{NAMES[number]}.out").open("w"),
        stderr=(folder / f"{launch}-{NAMES[number]}.err").open("w"),
        start_new_session=True,
    )


def until(condition: object, what: str, seconds: float = 150.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"did not {what}"
        time.sleep(0.1)


def said(folder: Path, launch: str, name: str, stream: str) -> str:
    return (folder / f"{launch}-{name}.{stream}").read_text()


def test_one_of_two_hosts_is_lost_and_the_run_goes_on(hosts: None, tmp_path: Path) -> None:
    endless(tmp_path)
    both = [torchrun(number, tmp_path, "first", "--checkpoint_every_n_steps", 10) for number in range(2)]
    try:
        until(
            lambda: (tmp_path / "run" / "metrics.csv").exists() and len(runs.curve(tmp_path / "run")) > 3,
            "train",
        )
        # Whichever host has come first has rank zero.
        first = next(
            n for n, name in enumerate(NAMES) if "step      1/" in said(tmp_path, "first", name, "out")
        )
        os.killpg(both[1 - first].pid, signal.SIGKILL)
        began = time.monotonic()
        code = both[first].wait(90)
        seconds = time.monotonic() - began
        err = said(tmp_path, "first", NAMES[first], "err")
        assert code != 0, err
        assert seconds < 60
        assert "error: another rank was lost" in err
        assert "--resume auto" in err
        assert runs.status(tmp_path / "run")["exit_code"] == 6
        print(f"ended {seconds:.1f} s after the other host was killed, torchrun with code {code}")
        # And on: the same command on both.
        before = runs.status(tmp_path / "run")["step"]
        both = [
            torchrun(number, tmp_path, "second", "--trainer.max_steps", before + 20) for number in range(2)
        ]
        assert [process.wait(200) for process in both] == [0, 0], said(tmp_path, "second", "a", "err")
        assert runs.status(tmp_path / "run")["state"] == "finished"
        assert "resumed  after step" in "".join(said(tmp_path, "second", name, "out") for name in NAMES)
        assert {launch["host"] for launch in runs.launches(tmp_path / "run")} <= {"node-a", "node-b"}
    finally:
        for process in both:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

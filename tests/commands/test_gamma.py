"""``app gamma`` on files made to fill memory or to be read wrongly: one message, the right exit code, little memory."""

import json
import os
import sys
from pathlib import Path
from pickle import STOP

import pytest
import torch

from app.cli import main
from tests.support.hostile import BEGIN, HEADERS, PICKLES, archive, gain, safetensors
from tests.support.memory import measured


def refused(path: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and message of the command, which must have taken no more memory than the file's size allows."""
    outcome = measured(lambda: sys.exit(main(["gamma", str(path), "--output", str(path.parent)])))
    assert outcome.error is not None
    kind, code = outcome.error
    said = capfd.readouterr().err
    assert kind == "SystemExit", outcome.error
    assert said.startswith("error: ")
    assert str(path) in said
    assert len(said) < 500
    size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
    assert outcome.n_bytes <= 2 * size + 64_000_000, f"{outcome.n_bytes:,} bytes for {size:,}: {said}"
    return int(code), said


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What the command imports is no part of what a file takes."""
    import app.analysis.gamma
    import app.analysis.gamma_figure
    import app.analysis.stored_tensors  # noqa: F401


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_lies(what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    header, code = HEADERS[what]
    assert refused(safetensors(tmp_path / "a.safetensors", header, bytes(4096)), capfd)[0] == code


@pytest.mark.parametrize("length", [0, 1, 17, 1 << 20, (1 << 63) - 1, (1 << 64) - 1])
def test_a_header_of_another_length(length: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = safetensors(tmp_path / "a.safetensors", gain(4, 0, 16), length=length)
    assert refused(path, capfd)[0] == 2


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.ckpt", "folder/pytorch_model-00001-of-00002.bin"])
@pytest.mark.parametrize("what", ["chained encode", "setattr", "expanded", "a storage of 10**12 bytes"])
def test_an_archive(name: str, what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    archive(path, PICKLES[what])
    named = path.parent if path.parent != tmp_path else path
    assert refused(named, capfd)[0] == 4


def test_a_pipe_a_device_and_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for suffix, code in ((".safetensors", 2), (".bin", 2), (".json", 2), (".ckpt", 4)):
        pipe = tmp_path / f"pipe{suffix}"
        os.mkfifo(pipe)
        assert refused(pipe, capfd)[0] == code
        device = tmp_path / f"device{suffix}"
        device.symlink_to("/dev/zero")
        assert refused(device, capfd)[0] == code
    shards = tmp_path / "shards"
    shards.mkdir()
    os.mkfifo(shards / "model-00001.safetensors")
    assert refused(shards, capfd)[0] == 2


def test_an_index_that_names_other_files_is_not_followed(tmp_path: Path) -> None:
    outside = safetensors(tmp_path / "outside.safetensors", gain(4, 0, 16, layer=1))
    folder = tmp_path / "model"
    folder.mkdir()
    weights = {f"h.{n}.ln_1.weight": torch.full((4,), 1.0 + n) for n in range(3)}
    torch.save(weights, folder / "pytorch_model.bin")
    index = {"weight_map": dict.fromkeys(weights, f"../{outside.name}") | {"x": "/dev/zero"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert main(["gamma", str(folder), "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "gamma.json").read_text())["scales"] == {"ln_1": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    "content",
    [
        '{"scales": {"a": [1e999, 2]}, "kinds": {"a": "norm"}}',
        '{"scales": {"a": [Infinity, 2]}, "kinds": {"a": "norm"}}',
        '{"scales": {"a": [NaN, 2]}, "kinds": {"a": "norm"}}',
        '{"scales": {"a": [' + "1," * 4_000_000 + '1]}, "kinds": {"a": "norm"}}',
        '{"a":' * 900 + "1" + "}" * 900,
        "[" * 500_000,
        "9" * 100_000,
        "[" + "1," * 9_000_000 + "1]",
    ],
)
def test_a_gamma_json(content: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gamma.json"
    path.write_text(content)
    assert refused(path, capfd)[0] == 2


def test_scales_alone_as_the_original_script_wrote_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = {"input_ln": [1.0, 1.2, 1.5, 1.4], "q_proj": [0.1, 0.2, 0.15, 0.3], "gate_proj": [0.2] * 4}
    (tmp_path / "a.json").write_text(json.dumps({"scales": rows}))
    assert main(["gamma", str(tmp_path / "a.json"), "--output", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "gamma.json").read_text())
    assert written["scales"] == rows
    assert written["kinds"] == {"input_ln": "norm", "q_proj": "matrix", "gate_proj": "matrix"}
    said = capfd.readouterr().out
    assert "no fit   4 layers are too few, at least it takes for power_offset 5, piecewise 7\n" in said
    assert "the series is constant" in said


def test_small_values_in_a_large_row_are_read_a_piece_at_a_time(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Eight-bit numbers take eight times their room in double precision."""
    n = 30_000_000
    entry = {"h.0.attn.c_proj.weight": {"dtype": "F8_E4M3", "shape": [n], "data_offsets": [0, n]}}
    wide = {"h.0.attn.c_proj.weight": {"dtype": "F8_E4M3", "shape": [1, n], "data_offsets": [0, n]}}
    for header in (entry, wide):
        assert refused(safetensors(tmp_path / "a.safetensors", header, bytes(n)), capfd)[0] == 2
    tall = {
        "h.0.attn.c_proj.weight": {"dtype": "F8_E4M3", "shape": [n // 1000, 1000], "data_offsets": [0, n]}
    }
    path = safetensors(tmp_path / "a.safetensors", tall, bytes(n))

    def scales() -> None:
        from app.analysis.gamma_families import stored_scales
        from app.analysis.stored_tensors import find

        assert stored_scales(find(path)).rms == {"attn.c_proj": [0.0]}

    outcome = measured(scales)
    assert outcome.error is None, outcome
    assert outcome.n_bytes < 2 * n + 64_000_000


def test_what_is_sound_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    safetensors(tmp_path / "a.safetensors", gain(4, 0, 16) | {"__metadata__": {"format": "pt"}}, bytes(16))
    assert main(["gamma", str(tmp_path / "a.safetensors"), "--output", str(tmp_path)]) == 0
    archive(tmp_path / "empty.bin", BEGIN + b"}" + STOP)
    code, said = refused(tmp_path / "empty.bin", capfd)
    assert code == 2
    assert "no tensor's name carries a block's number" in said

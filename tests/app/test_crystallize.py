"""``app crystallize`` on runs and on models of transformers; crystallised networks that train on."""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.cli import main
from app.commands.crystallize import basis_name
from app.commands.crystallize_input import in_other_tokens
from app.loading import load
from app.models.crystal import ResidualBasis
from app.run.configuration import find_config, read_config
from app.run.lock import RunLock
from tests.support import runs, tiny
from tests.support.application import REPOSITORY, Application

pytestmark = pytest.mark.process
SMALL = ("--n_blocks", 4, "--calibration_blocks", 3)
STAGES = 1 + 3 + 4 + 2 * 4  # the basis, three forms without a number, k = 1 2 4 8, and r = 1 2 4 8 twice

KILL_AFTER = """
import os, signal
from app.run.partial_results import PartialResults
keep = PartialResults.keep
def keep_and_die(self, name, result):
    keep(self, name, result)
    if name == {name!r}:
        os.kill(os.getpid(), signal.SIGKILL)
PartialResults.keep = keep_and_die
"""


@dataclass(frozen=True)
class Trained:
    """Tiny runs: a GPT of two layers, 20 steps, and a LocalGPT with either attention."""

    config: Path
    gpt: Path
    softmax: Path
    sigmoid: Path


@pytest.fixture(scope="module")
def trained(application: Application, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    text = tiny.write_text(folder / "text.txt")
    steps = dict(checkpoint_every_n_steps=10, trainer__max_steps=20, trainer__val_check_interval=10)
    config = tiny.write(folder / "gpt.yaml", tiny.gpt(text, **steps))
    jobs = [partial(application.fit, config, folder / "gpt")]
    for attention in ("softmax", "sigmoid"):
        model = {
            "class_path": "app.training.LocalGPTModule",
            "init_args": {"n_layers": 1, "n_heads": 2, "d_model": 8, "attn_mode": attention},
        }
        few = dict(trainer__max_steps=2, trainer__val_check_interval=2)
        local = tiny.write(folder / f"{attention}.yaml", tiny.gpt(text, model=model, **few))
        jobs.append(partial(application.fit, local, folder / attention))
    return Trained(config, *application.all(*jobs))


def test_a_basis_is_named_by_its_layers() -> None:
    """Another set of layers leaves it alone."""
    names = [basis_name(layers) for layers in ([1], [0, 1, 2], [0, 2], [0, 1, 4, 9, 10, 11])]
    assert names == [
        f"basis-layers-{text}.safetensors" for text in ("1", "0to2", "0-2", "0to1-4-9to11")
    ]  # fmt: skip


def test_text_in_other_tokens_comes_from_all_of_a_split() -> None:
    split = np.arange(10_000)
    read: list[np.ndarray] = []

    def tokens(piece: np.ndarray) -> np.ndarray:
        read.append(piece)
        return piece[::3]

    found = in_other_tokens(split, tokens, n_blocks=4, seq_len=10)
    assert [len(piece) for piece in read] == [160] * 4
    assert (read[0][0], read[-1][-1]) == (0, 9_999)
    blocks = found.reshape(-1, 10)
    assert len(blocks) == 4 * 5
    assert (np.diff(blocks) == 3).all()  # none reaches over a gap
    assert np.array_equal(in_other_tokens(split, tokens, n_blocks=63, seq_len=10), split[::3])


def test_the_recipe_of_the_tuned_configuration_names_what_is_written() -> None:
    """The heading's basis is the file of the layers that the configuration crystallises."""
    path = find_config("crystal_tuned16")
    layers = read_config(path).data["model"]["init_args"]["crystal_layers"]
    assert f"RUN/crystallize/{basis_name(layers)}" in path.read_text().splitlines()[2]
    assert f"app crystallize RUN --layers {' '.join(map(str, layers))}" in path.read_text()
    ours, scratch = (read_config(find_config(f"crystal_{name}16")).data for name in ("tuned", "lowrank"))
    assert ours["data"] == scratch["data"]
    for name in ("mode", "rank", "d_model", "n_layers", "n_heads", "crystal_layers"):
        assert ours["model"]["init_args"][name] == scratch["model"]["init_args"][name]


@pytest.mark.parametrize("name", ["crystal_top2", "crystal_lowrank4", "crystal_lowrank16"])
def test_a_shipped_configuration_differs_from_the_baseline_in_its_attention(name: str) -> None:
    baseline, crystal = (read_config(find_config(config)).data for config in ("gpt_char", name))
    own = {"crystal_layers", "mode", "top_k" if "top" in name else "rank"}
    assert baseline.pop("model")["init_args"].items() == {
        key: value for key, value in crystal.pop("model")["init_args"].items() if key not in own
    }.items()  # fmt: skip
    watchers = [watcher["class_path"] for watcher in crystal["trainer"].pop("callbacks")]
    del baseline["trainer"]["callbacks"]
    assert "callbacks.CrystalSpectrum" in watchers
    assert crystal == baseline


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "crystallize.json").read_text())
    return found


def test_a_run(application: Application, trained: Trained, tmp_path: Path) -> None:
    before = runs.files(trained.gpt)
    ended = application.run("crystallize", trained.gpt, *SMALL, "--out_dir", "found", cwd=tmp_path)
    assert ended.code == 0, ended
    assert ended.err == ""
    assert runs.files(trained.gpt) == before
    folder = tmp_path / "found"
    assert {path.name for path in folder.iterdir()} == {
        "basis-layers-1.safetensors", "crystallize.json", "crystallize.png", "stages.json",
    }  # fmt: skip
    summary = figures(folder)
    assert summary["layers"] == [1]
    assert summary["ranks"] == [1, 2, 4, 8]
    assert (summary["device"], summary["batch_size"], summary["unit"]) == ("cpu", 8, "character")
    assert summary["text"].endswith("text.txt")
    assert summary["versions"]["torch"] == str(torch.__version__)
    assert [mode["rank"] for mode in summary["modes"] if mode["mode"] == "lowrank"] == [1, 2, 4, 8]
    own = summary["baseline"]["perplexity"]
    full = next(mode for mode in summary["modes"] if mode["mode"] == "full")
    assert full["perplexity"] == pytest.approx(own, rel=1e-4)
    for said in (
        "top key alone",
        "softmax over the best 8 keys",
        "top key + random rank 4",
        "r90",
        "verdict  ",
    ):
        assert said in ended.out, ended
    assert ended.out.count("stage    ") == STAGES


@pytest.mark.stress
def test_a_killed_measurement_goes_on(application: Application, trained: Trained, tmp_path: Path) -> None:
    words = ("crystallize", trained.gpt, *SMALL, "--layers", 0, 1)
    killed = application.run(
        *words, "--out_dir", "killed", cwd=tmp_path, prelude=KILL_AFTER.format(name="topk-2")
    )
    assert killed.code == -9, killed
    again = application.run(*words, "--out_dir", "killed", cwd=tmp_path)
    assert again.code == 0, again
    assert f"resumed  6 of {STAGES} stages are done" in again.out
    assert "top key alone (" not in again.out
    clean = application.run(*words, "--out_dir", "clean", cwd=tmp_path)
    assert figures(tmp_path / "killed") == figures(tmp_path / "clean")
    table = again.out.partition("Layers")[2].partition("written")[0]
    assert table == clean.out.partition("Layers")[2].partition("written")[0]
    # More ranks use what is there; another seed, text or layer begins again.
    more = application.run(*words, "--ranks", 3, "--out_dir", "killed", cwd=tmp_path)
    assert more.out.count("stage    ") == 1 + 2, more
    assert f"resumed  8 of {1 + 3 + 4 + 2} stages are done" in more.out
    # A basis that another launch has left there is not taken for this one's.
    name = "basis-layers-0to1.safetensors"
    own = (tmp_path / "killed" / name).read_bytes()
    other = application.run(
        *words, "--calibration_blocks", 2, "--ranks", 1, "--out_dir", "other", cwd=tmp_path
    )
    assert other.code == 0, other
    shutil.copy(tmp_path / "other" / name, tmp_path / "killed" / name)
    mended = application.run(*words, "--out_dir", "killed", cwd=tmp_path)
    assert mended.code == 0, mended
    assert (tmp_path / "killed" / name).read_bytes() == own
    assert figures(tmp_path / "killed") == figures(tmp_path / "clean")
    other = application.run(*words, "--seed", 1, "--out_dir", "killed", cwd=tmp_path)
    assert "begun again" in other.out
    assert other.out.count("stage    ") == STAGES


@pytest.fixture(scope="module")
def tuned(application: Application, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline, crystallised on both layers and trained on from there."""
    folder = tmp_path_factory.mktemp("tuned")
    found = application.run(
        "crystallize", trained.gpt, *SMALL, "--layers", 0, 1, "--out_dir", "found", cwd=folder
    )
    assert found.code == 0, found
    config = read_config(trained.config).data
    config["model"]["class_path"] = "app.training.CrystalGPTModule"
    basis = folder / "found" / "basis-layers-0to1.safetensors"
    config["model"]["init_args"] |= {"rank": 3, "basis": str(basis)}
    config["trainer"]["callbacks"] = [{"class_path": "callbacks.CrystalSpectrum"}]
    run = application.fit(
        tiny.write(folder / "config.yaml", config), folder / "run", "--init_from", trained.gpt
    )
    modes = ResidualBasis.load(basis).modes[..., :3]
    held = runs.last_checkpoint(run)["state_dict"]
    assert all(torch.equal(held[f"network.blocks.{i}.attn.core.basis"], modes[i]) for i in (0, 1))
    # The file belongs to these weights, and is told where it does not.
    few = ("--trainer.max_steps", 1, "--trainer.val_check_interval", 1, "--run_dir")
    words = ("fit", "--config", folder / "config.yaml", *few)
    own, other = application.all(
        lambda: application.run(*words, "own", "--init_from", trained.gpt, cwd=folder),
        lambda: application.run(*words, "other", "--init_from", run, cwd=folder),
    )
    assert (own.code, other.code) == (0, 0), (own, other)
    assert "was made for" not in own.out + own.err
    assert "was made for other weights than those that --init_from takes" in other.out
    basis.unlink()  # whatever follows needs the checkpoint alone
    return run


def test_a_crystallised_network_trains_on(tuned: Path, application: Application, trained: Trained) -> None:
    row = next(row for row in runs.curve(tuned) if row["step"] == "20" and "train/loss" in row)
    for key in ("residual_r90/l00", "attention_entropy/max", "top_share", "top_share/l01"):
        assert f"crystal/{key}" in row, sorted(row)
    assert {line["key"] for line in runs.details(tuned)} >= {"crystal/residual_r90"}
    # It begins where the GPT stood and not at a new network's loss.
    first = float(next(row["train/loss"] for row in runs.curve(tuned) if "train/loss" in row))
    of_gpt = [float(row["train/loss"]) for row in runs.curve(trained.gpt) if "train/loss" in row]
    assert first < of_gpt[0] - 0.1
    basis = runs.last_checkpoint(tuned)["state_dict"]["network.blocks.1.attn.core.basis"]
    assert torch.allclose(basis.mT @ basis, torch.eye(3).expand(2, 3, 3), atol=1e-5)
    validated = application.run("validate", tuned, cwd=tuned.parent)
    assert validated.code == 0, validated
    generated = application.run("generate", tuned, "--tokens", 40, cwd=tuned.parent)
    assert generated.code == 0, generated
    assert len(generated.out) == 41  # and the end of the line


def test_it_resumes_to_the_same_bits(tuned: Path, application: Application, tmp_path: Path) -> None:
    shutil.copytree(tuned, tmp_path / "run")
    run = tmp_path / "run"
    for path in run.glob("checkpoints/*-000020.ckpt*"):
        path.unlink()
    again = application.go_on(run)
    assert again.code == 0, again
    mine, whole = (runs.last_checkpoint(path)["state_dict"] for path in (run, tuned))
    assert all(torch.equal(mine[name], x) for name, x in whole.items())


def test_an_architecture_that_cannot_take_the_weights_says_so(
    application: Application, trained: Trained, tuned: Path, tmp_path: Path
) -> None:
    ended = application.run(
        "fit", "--config", trained.config, "--init_from", tuned, "--run_dir", "run", cwd=tmp_path
    )
    assert ended.code == 2, ended
    assert "the weights do not fit this network: network.blocks.0.attn.core.basis" in ended.err


MISTAKES: list[tuple[tuple[object, ...], str]] = [
    (("--layers", 2), "--layers 2: there is no such layer; GPT has attention layers 0 … 1"),
    (("--ranks", 4, 9), "--ranks 9: is above the head width, 8"),
    (("--ranks", 0), "--ranks 0: must be 1 or more"),
    (("--calibration_blocks", 1, "--seq_len", 4), "--calibration_blocks 1: 4 tokens are too few for heads of width 8"),
    (("--seq_len", 17), "--seq_len 17: GPT reads at most 16 tokens"),
    (("--n_blocks", 9999), "--n_blocks 9999: the validation split has"),
    (("--n_blocks", 1), "--n_blocks 1: must be 2 or more"),
    (("--device", "cuda:99"), "--device cuda:99: cannot be used here"),
    (("--device", "meta"), "--device meta: cannot be used here"),
    (("--device", "hpu"), "--device hpu: cannot be used here"),
    ((*SMALL, "--out_dir", "a-file"), "--out_dir a-file: is a file; name a directory"),
    ((*SMALL, "--out_dir", "a-file/below"), "--out_dir a-file/below: a-file is a file, and nothing can lie below it"),
    (("--data", "gpt_char"), "gpt_char: this text has another tokenizer"),
    (("--data", "nowhere"), "nowhere"),
    (("--layer", 1), "unrecognized arguments: --layer 1"),
    (("--model", "hf:x"), "name one network"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "")  # fmt: skip
def test_a_mistake(
    trained: Trained,
    tmp_path: Path,
    words: tuple[object, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process: a new one would spend most of its time on imports."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    code = main(["crystallize", str(trained.gpt), *map(str, words)])
    err = capfd.readouterr().err
    assert code == 2, err
    assert said in err, err
    assert err.startswith("error: ")
    assert not (trained.gpt / "crystallize").exists()


def test_results_that_another_launch_writes_are_left_alone(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with RunLock(tmp_path):
        code = main(["crystallize", str(trained.gpt), *map(str, SMALL), "--out_dir", str(tmp_path)])
    err = capfd.readouterr().err
    assert code == 2, err
    assert "is in use by process" in err
    assert "use another --out_dir" in err
    assert list(tmp_path.iterdir()) == []


def test_a_local_gpt_with_either_attention(
    application: Application, trained: Trained, tmp_path: Path
) -> None:
    softmax, sigmoid = application.all(
        lambda: application.run("crystallize", trained.softmax, *SMALL, cwd=tmp_path),
        lambda: application.run("crystallize", trained.sigmoid, *SMALL, cwd=tmp_path),
    )
    assert softmax.code == 0, softmax
    assert figures(trained.softmax / "crystallize")["model"] == "LocalGPT"
    assert sigmoid.code == 2, sigmoid
    assert "layer = 0: its attention is SigmoidAttention, not softmax over all keys" in sigmoid.err


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_models_of_transformers(
    application: Application,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Trained through a wrapper of a user's own, then measured there and as the folder that the library saves."""
    here = REPOSITORY / "tests" / "app"
    shutil.copy(here / "hf_gpt2.py", tmp_path)
    config = read_config(here / "hf_gpt2.yaml").data
    config["model"]["init_args"] |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "learning_rate": 0.01}
    text = tiny.write_text(tmp_path / "text.txt")
    config["data"]["init_args"] |= dict(path=str(text), block_size=16, batch_size=8, val_fraction=0.02)
    config["trainer"] |= {"max_steps": 20, "val_check_interval": 20, "accelerator": "cpu"}
    application.fit(
        tiny.write(tmp_path / "config.yaml", config), tmp_path / "run", "--trust_imports", "hf_gpt2"
    )

    # In this process: a new one would spend seconds on the library's import, each time.
    def crystallize(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["crystallize", *map(str, words)])
        return code, *capfd.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = crystallize("run", *SMALL, "--trust_imports", "hf_gpt2")
    assert code == 0, err
    assert figures(tmp_path / "run" / "crystallize")["n_layers"] == 2

    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    load("run", trust_imports=["hf_gpt2"]).network.inner.save_pretrained("saved")  # type: ignore[union-attr, operator]
    code, _, err = crystallize(
        "--model", "hf:saved", "--data", text, *SMALL, "--seq_len", 16, "--out_dir", "out"
    )
    assert code == 0, err
    saved, ours = figures(tmp_path / "out"), figures(tmp_path / "run" / "crystallize")
    assert saved["model"] == "GPT2LMHeadModel saved"
    assert saved["spectrum"]["d_head"] == ours["spectrum"]["d_head"] == 8
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocab_size = json.loads(Path("saved/config.json").read_text())["vocab_size"]
    LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, num_key_value_heads=1, **sizes)).save_pretrained(
        "llama"
    )
    code, _, err = crystallize(
        "--model", "hf:llama", "--data", text, *SMALL, "--seq_len", 16, "--out_dir", "llama-out"
    )
    assert code == 0, err
    assert figures(tmp_path / "llama-out")["spectrum"]["d_head"] == 4
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=8, **sizes)).save_pretrained("neox")
    shutil.copytree("saved", "damaged")
    weights = Path("damaged/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    for name, change in (("shapes", {"n_embd": 24}), ("typed", {"n_embd": "many"}), ("heads", {"n_head": 3})):
        shutil.copytree("saved", name)
        settings = json.loads(Path(name, "config.json").read_text())
        Path(name, "config.json").write_text(json.dumps(settings | change))
    for words, said in (
        *(
            ((f"hf:{name}", "--data", text), f"--model hf:{name}: ")
            for name in ("damaged", "shapes", "typed", "heads")
        ),
        (("hf:neox", "--data", text), "is of the family 'gpt_neox'; can be crystallised: gpt2, llama"),
        (("hf:./absent", "--data", text), "--model hf:./absent: "),
        (("hf:saved",), "--data is missing"),
        (("hf:saved", "--data", "gpt_char"), "brings no tokenizer"),
    ):
        code, _, err = crystallize("--model", *words)
        assert code == 2, err
        assert err.startswith("error: "), err
        assert said in err, err

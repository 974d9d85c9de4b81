"""``app bench``: what it prints, what it refuses, and that a check that fails says so."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.ops import case
from app.ops.case import Size
from app.ops.hadamard import hadamard
from app.training import passed

SMALL = ["--quick", "--n_layers", "1", "--d_model", "16"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["bench", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Names of processors and paths may be longer.
    long = [line for line in lines[2:] if len(line) > 80 and not line.startswith(("written", "recorded"))]
    assert not long
    return lines


def test_an_operator_is_timed_beside_its_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    lines = run(capsys, "--op", "ternary", "--quick", "--json", str(file))
    assert [line.split()[0] for line in lines[:5]] == ["device", "versions", "quick", "ceilings", "timing"]
    found = json.loads(file.read_text())
    assert {row["case"] for row in found["operators"]} == {*case.cases("ternary")}
    fast, _, naive, _ = found["operators"][:4]
    assert (fast["form"], naive["form"], fast["what"]) == ("vectorized", "naive", "fwd")
    assert fast["n_bytes"] == 2 * 4 * 2 * 16 * 8  # N stacked matrices of 2 D × D, read and written in fp32
    assert fast["flops"] == naive["flops"] > 0
    assert naive["speedup"] == 1
    assert fast["speedup"] == pytest.approx(naive["median_seconds"] / fast["median_seconds"])
    assert len(fast["windows_seconds"]) == 2
    assert set(found["ceilings"]["products"]) == {"fp32", "bf16"}


def test_a_sweep_has_a_table_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "--op", "pathway_mix", "--sweep", "T", "--quick", "--block_size", "8")
    tables = [line.split() for line in lines if line.startswith("pathway_mix")]
    assert [int(words[words.index("T") + 1]) for words in tables] == [2, 4, 7, 8, 16, 32]


def test_a_step_is_timed_beside_its_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    lines = run(capsys, "--model", "tilelli_banks4", *SMALL, "--block_size", "16", "--json", str(file))
    assert "tilelli_banks4: B 2 x T 16 = 32 tokens, V 96, 32-true" in lines
    eager, naive = json.loads(file.read_text())["models"]
    assert (eager["path"], naive["path"], eager["tokens"]) == ("eager", "naive", 32)
    assert eager["flops"] > 0
    assert eager["sizes"] == {
        "B": 2,
        "T": 16,
        "V": 96,
        "batch_size": 2,
        "block_size": 16,
        "d_model": 16,
        "n_layers": 1,
    }


def test_a_class_has_a_size_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(
        capsys, "--model", "TilelliModule", *SMALL, "--sweep", "N", "--n_banks", "4", "--block_size", "4"
    )
    assert sum(line.startswith("TilelliModule: B 2 x T 4") for line in lines) == 6


@pytest.mark.stress
def test_the_tax_is_told_of_both_loops(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "--model", "tilelli_banks4", "--tax", *SMALL)
    assert [line.partition("  ")[0] for line in lines[-2:]] == ["Trainer(barebones=True)", "application"]


def test_a_network_is_checked_and_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "passed.json"
    table.write_text(json.dumps({"2.0.0": {"sm_90": {"graphed": ["mylab.Net"]}}}))
    lines = run(capsys, "--model", "gpt_char", "--check", "--record", str(table))
    assert "skipped graphed, 1 configurations: graphs need a GPU" in lines
    assert "checked 1 calls, 0 failed" in lines
    before, now = json.loads(table.read_text()).values()
    assert before == {"sm_90": {"graphed": ["mylab.Net"]}}
    assert now == {"cpu": {"eager": ["app.models.gpt.network.GPT"]}}


def test_a_form_that_computes_something_else_fails_and_is_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from app.ops import choice

    def wrong(x: Any) -> Any:
        return hadamard(x) * (1.0 + 1e-3 * (choice._forced != "naive"))

    wrong.__module__ = hadamard.__module__
    described = {"hadamard": replace(case.cases("hadamard")["hadamard"], function=wrong)}
    monkeypatch.setattr(case, "cases", lambda operator: described)
    table = tmp_path / "passed.json"
    here = {"vectorized": ["app.ops.hadamard 0123456789abcdef", "app.ops.ternary"]}
    table.write_text(json.dumps({passed.torch_version(): {"cpu": here}}))
    assert main(["bench", "--op", "hadamard", "--check", "--record", str(table)]) == 1
    assert passed.read(table) == {passed.torch_version(): {"cpu": {"vectorized": ["app.ops.ternary"]}}}
    out = capsys.readouterr().out
    assert "failed  hadamard vectorized, D=40 N=1 fp32\n        output: 1.0e-03 > 1e-05" in out
    assert "gradient of x: 1.0e-03 > 1e-04" in out


def test_a_form_is_noted_as_the_source_that_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from app.ops.sources import digest

    table = tmp_path / "passed.json"
    here = {"vectorized": ["app.ops.hadamard 0123456789abcdef", "app.ops.ternary 0123456789abcdef"]}
    table.write_text(json.dumps({passed.torch_version(): {"cpu": here}}))
    run(capsys, "--op", "hadamard", "--check", "--record", str(table))
    now = [f"app.ops.hadamard {digest('app.ops.hadamard.vectorized')}", here["vectorized"][1]]
    assert passed.read(table) == {passed.torch_version(): {"cpu": {"vectorized": now}}}


def test_a_form_that_breaks_off_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from app.ops import choice

    def broken(x: Any) -> Any:
        if choice._forced != "naive":
            raise RuntimeError("no such kernel\nat line 1")
        return hadamard(x)

    broken.__module__ = hadamard.__module__
    described = {"hadamard": replace(case.cases("hadamard")["hadamard"], function=broken)}
    monkeypatch.setattr(case, "cases", lambda operator: described)
    assert main(["bench", "--op", "hadamard", "--check", "--quick"]) == 1
    assert "no such kernel" in capsys.readouterr().out


def test_several_operators_are_checked_and_their_time_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    lines = run(capsys, "--op", "hadamard", "ternary", "--check", "--quick", "--json", str(file))
    assert [line.split()[1] for line in lines if line.startswith("seconds")] == ["hadamard", "ternary"]
    found = json.loads(file.read_text())
    assert {*found["seconds"]} == {"hadamard", "ternary"}
    assert {each["name"].partition(" ")[0] for each in found["findings"]} == {
        *case.cases("hadamard"),
        *case.cases("ternary"),
    }


@pytest.mark.stress
def test_all_that_is_shipped_passes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "--check")
    assert lines[-1].endswith(" 0 failed")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing to measure"),
        (["--op", "hadamrd"], "invalid choice: 'hadamrd'"),
        (["--op", "hadamard", "--model", "gpt_char"], "leave one out"),
        (["--op", "hadamard", "--sweep", "T"], "hadamard does not depend on it"),
        (["--op", "hadamard", "--paths", "eager"], "--paths: is of networks"),
        (["--model", "gpt_char", "--sweep", "N"], "has no n_banks that could be swept"),
        (["--model", "gpt_char", "--paths", "graphed"], "graphs need a GPU"),
        (["--model", "gpt_char", "--d_model", "33"], "n_heads"),
        (["--model", "gpt_char", "--d_model", "0"], "0 is below 1"),
        (["--model", "gpt_chr"], "did you mean gpt_char?"),
        (["--tax"], "--tax: needs the configuration"),
        (["--model", "gpt_char", "--tax", "--check"], "keep one"),
        (["--op", "hadamard", "--windows", "3"], "must be at least 5"),
        (["--check", "--d_model", "8"], "has sizes of its own"),
        (["--model", "gpt_char", "--record", "t.json"], "add --check"),
        (["--check", "--quick", "--record", "t.json"], "is of whole checks"),
        (["--model", "gpt_char", "--check", "--d_model", "8", "--record", "t.json"], "is of whole checks"),
        (["--model", "gpt_char", "--fast_nondeterministic"], "equal steps are equal at no cost"),
        (["--op", "hadamard", "--fast_nondeterministic"], "is of the times of a network's paths"),
        (["--op", "hadamard", "--json", "no/such/f.json"], "there is no folder no/such"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", '{"2.0.0": {"sm_90": ["a"]}}', "{"])
def test_a_file_that_is_no_table_is_left_alone(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "passed.json"
    table.write_text(text)
    assert main(["bench", "--op", "hadamard", "--check", "--record", str(table)]) == 2
    assert "name another file" in capsys.readouterr().err
    assert table.read_text() == text


def test_sizes_are_odd_and_hold_the_edges() -> None:
    from app.bench.check_operators import check_sizes, of_case

    sizes = check_sizes()
    assert {size.T for size in sizes} == {1, 63, 257, 1000}
    assert {size.D for size in sizes} == {40, 384}
    assert {size.N for size in sizes} == {1, 3, 8}
    assert any(size.n_empty for size in sizes)
    assert any(size.top_k > size.T > 1 for size in sizes)
    same = of_case([Size(2, 5, 8, 1), Size(2, 5, 8, 3)], case.cases("pathway_mix")["pathway_mix"])
    assert len(same) == 1

"""The notebook runs from its first cell to its finding."""

import json
from pathlib import Path
from typing import Any

import pytest

from app import exports
from datamodules.tokenizers import CharTokenizer
from tests.models.test_wrapped_blocks import BLOCK_SIZE, VOCABULARY, network
from tests.support.application import REPOSITORY

LETTERS = "abcdefghijklmnopqrstuvw"[:VOCABULARY]


@pytest.mark.parametrize("name", ["gpt", "tilelli, banks", "equilibrium", "crystal", "local_gpt, fa"])
def test_it_comes_to_a_finding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network(name)
    with exports.new_folder(tmp_path / "export", "DIR") as folder:
        described = {"network": model.description(), "block_size": BLOCK_SIZE}
        exports.write(folder, model.state_dict(), CharTokenizer(LETTERS), described, "# card\n")
    (tmp_path / "text.txt").write_text((LETTERS + LETTERS[::-1] + LETTERS[::2]) * 20)
    monkeypatch.setenv("RUN", str(tmp_path / "export"))
    monkeypatch.setenv("TEXT", str(tmp_path / "text.txt"))
    notebook = json.loads((REPOSITORY / "app" / "analysis" / "asking.ipynb").read_text())
    assert len(notebook["cells"]) == 10
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(notebook["cells"]):
        assert not cell.get("outputs")
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert namespace["finding"] in printed
    assert "nats per token" in namespace["finding"]

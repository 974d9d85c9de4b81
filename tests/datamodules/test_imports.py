"""What may be imported where."""

import subprocess
import sys

TEXT_PARTS = "datamodules.tokenizers, datamodules.windows, datamodules.corpus, datamodules.sources"


def run(program: str) -> None:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_text_tokens_and_windows_need_neither_lightning_nor_torch() -> None:
    run(
        "import sys\n"
        "for name in ('lightning', 'pytorch_lightning', 'torch'): sys.modules[name] = None\n"
        f"import {TEXT_PARTS}\n"
        "from datamodules.tokenizers import CharTokenizer\n"
        "assert CharTokenizer('ab').decode([1, 0]) == 'ba'\n"
    )


def test_loaders_do_not_need_lightning() -> None:
    run("import sys\nsys.modules['lightning'] = None\nimport datamodules.loaders\n")


def test_the_data_module_is_exported() -> None:
    import datamodules

    assert "CharDataModule" in dir(datamodules)
    assert datamodules.CharDataModule.__name__ == "CharDataModule"
    assert not hasattr(datamodules, "Missing")

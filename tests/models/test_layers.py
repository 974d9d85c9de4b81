"""Networks stand alone."""

import pkgutil
import subprocess
import sys

import app.models

MODULES = sorted(module.name for module in pkgutil.walk_packages(app.models.__path__, "app.models."))


def test_networks_import_without_the_training_framework() -> None:
    assert {"app.models.local_gpt", "app.models.equilibrium.network", "app.models.crystal.patch"} <= set(
        MODULES
    )
    script = (
        "import sys\n"
        "sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        f"import {', '.join(MODULES)}\n"
        "print('imported')"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "imported\n"), ended.stderr

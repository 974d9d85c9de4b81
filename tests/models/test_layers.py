"""Networks stand alone."""

import subprocess
import sys


def test_networks_import_without_the_training_framework() -> None:
    script = (
        "import sys\n"
        "sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import app.models, app.models.generation, app.models.gpt, app.models.tilelli\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

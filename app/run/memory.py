"""How much memory a process has taken."""

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Most resident memory of this process so far.

    Linux keeps a second figure, that of ``getrusage``, which a new program inherits from the process that started it:
    a small command begun by a large program would count as large.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

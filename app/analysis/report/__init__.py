"""One page about one run, or about several beside each other."""

from app.analysis.report.material import Material, read_lines
from app.analysis.report.page import report

__all__ = ["Material", "read_lines", "report"]

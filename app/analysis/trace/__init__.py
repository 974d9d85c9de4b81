"""One text, token by token: what a network did with each."""

from app.analysis.trace.page import TracedRun, trace_page
from app.analysis.trace.texts import token_texts
from app.analysis.trace.tokens import Trace, TracedMeasure, trace

__all__ = ["Trace", "TracedMeasure", "TracedRun", "token_texts", "trace", "trace_page"]

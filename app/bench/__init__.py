"""Measurements and checks of operators and training steps, for ``app bench``; see README.md."""

"""One file per command; each has ``run(name, words) -> exit code``."""

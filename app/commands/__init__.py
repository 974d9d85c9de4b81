"""One file per command; each has ``run(name, words) -> exit code``, and most a ``command_parser()``."""

COMMANDS = {
    "fit": "train a network, or resume a run",
    "configs": "list the shipped configurations, or print one",
    "new": "begin an architecture, callback, data set or task of your own",
    "validate": "evaluate a run on its validation split",
    "test": "evaluate a run on its test split",
    "generate": "continue a prompt with a run's network",
    "replay": "make past steps of a run again, bit for bit",
    "verify": "recompute a run, and refuse one that was changed",
    "compare": "put runs beside each other: settings, figures, curves",
    "report": "write one page about a run, or about several",
    "study": "run a grid of runs, and say what its figures allow to say",
    "trace": "show what a network did with each token of a text",
    "completion": "complete names and options at the tab key",
    "doctor": "say what this machine has and whether it will do",
    "bench": "time operators and training steps, and check their fast forms",
    "prepare": "download and tokenise a data set, once",
    "crystallize": "measure what attention keeps as its top key plus a few directions",
    "export": "write a network into a folder of its own",
    "evaluate": "ask a network the tasks of lm-eval",
    "ablate": "take parts of a network away and measure what each costs",
    "gamma": "fit how gains change over depth, and the temperature they imply",
}


def module_of(name: str) -> str:
    """The module of a command."""
    return f"app.commands.{'validate' if name == 'test' else name}"

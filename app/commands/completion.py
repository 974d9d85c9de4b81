"""``app completion``: a script for a shell that completes commands, options, configurations and classes.

It is made of the tables that the help prints and is complete in itself: the tab key starts no Python.
"""

import argparse
import importlib
from typing import TYPE_CHECKING, Any

from app.commands import COMMANDS, fit_help, module_of
from app.commands.new import KINDS
from app.commands.parsing import CommandParser
from app.run.configuration import shipped_directory, shipped_names
from app.run.errors import ExitCode
from app.run.paths import typed_path

if TYPE_CHECKING:
    from app.training.options.help import Entry

#: how each shell is given its script
SHELLS = {
    "bash": "app completion bash > ~/.local/share/bash-completion/completions/app",
    "zsh": "app completion zsh > FOLDER/_app, with FOLDER in $fpath",
    "tcsh": "app completion tcsh > ~/.app.tcsh, and source that in ~/.tcshrc",
}
#: ``--option=value`` as ``--option value``: bash cuts words at the sign, or not where ``COMP_WORDBREAKS`` lacks it
OF_BASH = """
_app() {
  local words=() before="" cursor=$COMP_CWORD at word
  for at in "${!COMP_WORDS[@]}"; do
    word="${COMP_WORDS[at]}"
    if [[ $word == = && ${COMP_WORDS[at-1]} == --* ]]; then
      if (( at == COMP_CWORD )); then words+=(""); elif (( at < COMP_CWORD )); then (( cursor -= 1 )); fi
    elif [[ $word == --*=* ]]; then
      words+=("${word%%=*}" "${word#*=}")
      if (( at <= COMP_CWORD )); then (( cursor += 1 )); fi
      if (( at == COMP_CWORD )); then before="${word%%=*}="; fi
    else
      words+=("$word")
    fi
  done
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$cursor
  _shtab_app "$@"
  COMPREPLY=("${COMPREPLY[@]/#/$before}")
}
complete -o bashdefault -F _app app"""
#: of the options that a launch of app fit takes, those that other commands take as well
ALSO_OF = {
    "prepare": ("--config NAME_OR_FILE", "--trust_imports PACKAGE"),
    "validate": ("--trust_imports PACKAGE",),
    "test": ("--trust_imports PACKAGE",),
}


def run(name: str, words: list[str]) -> int:
    """Prints the script.

    Args:
        name: ``completion``.
        words: the rest of the command line.
    """
    shell = command_parser().parse_args(words).shell

    import shtab

    with fit_help.light_imports():
        print(shtab.complete(all_commands(), shell), OF_BASH if shell == "bash" else "", sep="")
    return int(ExitCode.DONE)


def all_commands() -> argparse.ArgumentParser:
    """Every command with its options and what their values are completed from."""
    root = argparse.ArgumentParser(
        prog="app", description="Train, watch, resume and compare language models."
    )
    commands = root.add_subparsers(metavar="COMMAND")
    names = shipped_names(shipped_directory())
    options = _options_of_fit()
    for name, what in COMMANDS.items():
        module = importlib.import_module(module_of(name))
        own = getattr(module, "command_parser", None)
        if own is not None:
            parser = commands.add_parser(name, help=what, parents=[own()], add_help=False)
        else:
            parser = commands.add_parser(name, help=what)
            _add_options(parser, name, options)
        parsers = [parser]
        parts: dict[str, argparse.ArgumentParser] = getattr(module, "part_parsers", dict)()
        if parts:
            within = parser.add_subparsers()
            for part, its in parts.items():
                about = str(its.description).partition(".")[0].replace("%", "%%")
                parsers.append(within.add_parser(part, help=about, parents=[its], add_help=False))
        for of in parsers:
            for action in of._actions:
                _complete(action, names)
    return root


def _options_of_fit() -> "list[Entry]":
    """What ``app fit --help all`` and ``--model.help CLASS`` list."""
    from app.training.options.help import Entry, entries

    listed: list[Entry] = []
    offered = fit_help.offered_classes()
    # Before the sections, which have some of these options too, and no classes to choose from.
    for section, classes in offered.items():
        for end, what in (("", "use CLASS"), ("+", "add CLASS"), (".help", "the options of CLASS")):
            if end != "+" or section == "trainer.callbacks":
                listed.append(Entry(f"--{section}{end}", what, tuple(classes)))
    for _, of_section in fit_help.sections(everything=True, brief=True):
        listed += of_section
    for section in ("model", "data"):
        for owner in offered[section].values():
            listed += entries(f"--{section}.", owner, without=("network",), brief=True)
    return listed


def _add_options(parser: argparse.ArgumentParser, name: str, options: "list[Entry]") -> None:
    """The options of a command that is a launch of ``app fit``, or takes its options."""
    if name in ("validate", "test"):
        parser.add_argument("run", metavar="RUN", help="a run directory, or one of its checkpoint files")
        parser.add_argument("--checkpoint", choices=("best", "last"), help="which one of the run's")
    else:
        parser.add_argument(
            "names", metavar="NAME_OR_FILE", nargs="*", help="configurations, an overlay last"
        )
    added = set()
    for entry in options:
        is_of_launch = entry.name in fit_help.LAUNCH
        flag, _, metavar = entry.name.partition(" ")
        if flag in added or (is_of_launch and entry.name not in ALSO_OF.get(name, fit_help.LAUNCH)):
            continue  # an option of several classes, or of fit alone
        added.add(flag)
        how: dict[str, Any] = {"metavar": metavar or "VALUE"}
        if is_of_launch and not metavar:
            how = {"action": "store_true"}
        action = parser.add_argument(flag, help=entry.about.replace("%", "%%"), **how)
        action.choices = ("true", "false") if metavar == "true" else entry.choices or None


def _complete(action: argparse.Action, names: list[str]) -> None:
    """Says what the values of an option are completed from, where that is not a few choices."""
    import shtab

    completed: dict[Any, Any] = {
        "NAME_OR_FILE": _configurations(names),
        "RUN": shtab.DIRECTORY,
        "DIR": shtab.DIRECTORY,
    }
    if action.metavar == "KIND":
        action.choices = tuple(KINDS)
    elif action.metavar in completed:
        action.complete = completed[action.metavar]  # type: ignore[attr-defined]
    elif action.type is typed_path:
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _configurations(names: list[str]) -> dict[str, Any]:
    """Shipped configurations by name, and YAML files."""
    shipped = " ".join(names)
    of_bash = f"""
_app_configurations() {{
  compgen -W "{shipped}" -- "$1"
  compgen -f -X '!*.yaml' -- "$1"
  compgen -d -S / -- "$1"
}}"""
    of_zsh = f"""
_app_configurations() {{
  _alternative 'shipped:configuration:({shipped})' 'files:file:_files -g "*.yaml"'
}}"""
    return {
        "bash": "_app_configurations",
        "zsh": "_app_configurations",
        "tcsh": f"({shipped})",
        "preamble": {"bash": of_bash, "zsh": of_zsh},
    }


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "completion",
        description="Prints a script with which a shell completes commands, options, configurations and classes.",
        epilog="\n".join(SHELLS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", metavar="SHELL", choices=tuple(SHELLS), help=", ".join(SHELLS))
    return parser

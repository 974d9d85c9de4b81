"""Every mistake of a configuration at once, each with key, place, rule and remedy.

Each value is looked up by its path among the options of the classes that the configuration names, which are the typed
parameters of their constructors, and parsed once, alone. The command line's parser then takes a configuration that is
known to be sound.
"""

import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app import options
from app.run.configuration import nearest
from app.run.imports import check_trusted, folder_of_trusted, is_below, make_trusted_found
from app.run.synonyms import synonym
from app.training.options.settings import NETWORK, Path, Setting
from app.training.options.types import TypeProblem, class_in, in_words, n_supplied, parsed, takes_mapping

#: keys that mean something in the framework and nothing here, with the way to say it
REMEDIES = {
    "optimizer": "the module owns its optimizer; set model.init_args.optimizer and learning_rate",
    "lr_scheduler": "the module owns its schedule; set model.init_args.schedule and warmup_steps",
    "ckpt_path": "use --resume RUN to go on, or --init_from RUN for weights only",
}
REMEDY_TRUST = (
    "class paths must lie in app.training, app.models, callbacks or datamodules; your own need "
    "--trust_imports PREFIX"
)
REMEDY_NAME = "a class of your own is named with its module, as in mylab.parts.Name"
#: what a network is given by the data
LINKED = ("vocab_size", "block_size")
#: where classes are chosen whose options a key of another section can mean; the data's come first, which decides some
WITH_OPTIONS: tuple[Path, ...] = (("data",), ("model",), NETWORK)
#: sections that a key may have been written in by mistake; those of a watcher have names of their own
SECTIONS: tuple[Path, ...] = (
    (),
    ("trainer",),
    *WITH_OPTIONS,
    *((*where, "init_args") for where in WITH_OPTIONS),
)


class ConfigErrors:
    """Looks a configuration through.

    Args:
        given: its values.
        tree: option to type; a mapping is a section of further options.
        public: packages whose classes may be named; what they offer (``__all__``) by bare names too.
        trusted: import prefixes of the user's own.

    Attributes:
        problems: the messages.
        classes: where a class is chosen, to that class.
        values: where a class is chosen, or at a section, to the parsed values of its options.
        in_doubt: the same, to the names of options that something wrong was meant for.
    """

    def __init__(
        self,
        given: Sequence[Setting],
        tree: Mapping[str, Any],
        public: Sequence[str],
        trusted: Sequence[str],
    ):
        check_trusted(trusted)
        self._given = {setting.path: setting for setting in given}
        self._public, self._trusted = public, trusted
        self._tree = tree
        self._unknown_keys: set[str] = set()
        self._supplied: dict[Path, int] = {}
        self.in_doubt: dict[Path, set[str]] = {}
        self.problems: list[str] = []
        self.classes: dict[Path, type | None] = {}
        self.values: dict[Path, dict[str, Any]] = {}
        for section in ("model", "data"):
            if not any(path[0] == section and len(path) > 1 for path in self._given):
                alone = self._given.get((section,))
                if alone is None or alone.value in (None, {}):
                    self._say(
                        f"{section}.class_path: is not set; name a configuration with --config, or a class"
                    )
        for setting in given:
            self._look_up(self._tree, setting, setting.path, ())
        for where, class_type in self.classes.items():
            if class_type is not None:
                self._check_together(where, class_type)

    # -- one value --------------------------------------------------------------------------------------

    def _look_up(self, known: Mapping[str, Any], setting: Setting, rest: Path, prefix: Path) -> None:
        key, *after = rest
        if key not in known:
            if not self._is_left_over(setting, prefix):
                self._unknown(setting, str(key), known, prefix)
            return
        self._look_into(known[str(key)], setting, tuple(after), (*prefix, key))

    def _look_into(self, annotation: Any, setting: Setting, rest: Path, prefix: Path) -> None:
        if isinstance(annotation, Mapping):
            if rest:
                self._look_up(annotation, setting, rest, prefix)
            else:
                self._refuse_section(setting)
                self.in_doubt.setdefault(prefix, set()).update(annotation)
            return
        if not rest:
            self._take(annotation, setting, prefix)
            return
        if isinstance(rest[0], int):
            self._look_into(annotation, setting, rest[1:], (*prefix, rest[0]))
            return
        if takes_mapping(annotation) and rest[0] not in ("class_path", "init_args"):
            return  # the parser looks at it as a whole
        base = class_in(annotation)
        self._supplied[prefix] = n_supplied(annotation)
        if base is None:
            words = in_words(annotation)
            self._say(f"{setting.place}: there is no such key; {'.'.join(map(str, prefix))} is {words}")
            return
        class_type = self._chosen(prefix, base, setting)
        if class_type is None or rest == ("class_path",):
            return
        if rest[0] != "init_args":
            self._unknown(setting, str(rest[0]), ("class_path", "init_args"), prefix)
        elif len(rest) > 1:
            known = {name: p.annotation for name, p in options.options_of(class_type).items()}
            # Those of files alone: of runs that an earlier version has made.
            former: Mapping[str, str] = (
                getattr(class_type, "former_names", {}) if setting.text is None else {}
            )
            name = former.get(str(rest[1]), rest[1])
            self._look_up(known, setting, (name, *rest[2:]), (*prefix, "init_args"))
        else:
            self._refuse_section(setting)

    def _refuse_section(self, setting: Setting) -> None:
        """Refuses what stands where further options should; nothing at all may stand there."""
        if setting.value not in (None, {}):
            self._say(f"{setting.place}: {setting.value!r} is no section; write `key: value` lines below it")

    def _take(self, annotation: Any, setting: Setting, path: Path) -> None:
        """Parses a value; those of a class are kept, to be looked at together."""
        if path in (("model",), ("data",)):
            self._refuse_section(setting)
            return
        is_of_class = path[-2:-1] == ("init_args",)
        owner = path[:-2] if is_of_class else path[:-1]
        try:
            value = parsed(annotation, setting.value, setting.text)
            rule = "" if is_of_class else options.broken(annotation, value)
        except TypeProblem as problem:
            said = "its value is missing; it is" if setting.text == "" else f"{setting.value!r} is not"
            self._say(f"{setting.place}: {said} {problem}")
            self.in_doubt.setdefault(owner, set()).add(str(path[-1]))
            return
        if rule:
            self._say(f"{setting.place}: {_refused(value, rule)}")
        self.values.setdefault(owner, {})[str(path[-1])] = value

    def _is_left_over(self, setting: Setting, prefix: Path) -> bool:
        """Whether an earlier file set this for a class that a later one has replaced; the parser drops it too."""
        if prefix[-1:] != ("init_args",):
            return False
        named = self._given.get((*prefix[:-1], "class_path"))
        return named is not None and setting.order < named.order

    def _unknown(self, setting: Setting, key: str, known: Iterable[str], prefix: Path) -> None:
        name = ".".join(map(str, (*prefix, key)))
        place = setting.place if name == setting.key else f"{name} ({setting.origin})"
        message = f"{place}: there is no such key"
        # What the data decides is no option of the model.
        here = set(known) - {*(LINKED if prefix[:1] == ("model",) else ())}
        meant = synonym(key, here)
        there: Path = ()
        if meant is None and prefix in SECTIONS:
            every = self._options_by_name()
            there = every.get((synonym if prefix else nearest)(key, every) or "", ())
        if name in REMEDIES:
            hint = f"; {REMEDIES[name]}"
        elif there:
            hint = f"; did you mean {_written(there, setting)!r}?"
            self._doubt(there[:-1], there[-1])
        elif (meant := nearest(key, here)) is not None:
            hint = f"; did you mean {meant!r}?"
        else:
            hint = f"; known: {', '.join(sorted(known))}" if known else ""
        self._doubt(prefix, meant or key)
        if name not in self._unknown_keys:
            self._unknown_keys.add(name)
            self._say(f"{message}{hint}")

    def _doubt(self, where: Path, name: str | int) -> None:
        """Notes that something wrong was meant for this option, whose value is then not known."""
        owner = where[:-1] if where[-1:] == ("init_args",) else where
        self.in_doubt.setdefault(owner, set()).add(str(name))

    def _options_by_name(self) -> dict[str, Path]:
        """Where each option stands that a key can mean which stands in another section."""
        found: dict[str, Path] = {name: (name,) for name in self._tree}
        for where in WITH_OPTIONS:
            base = self._tree.get(str(where[0]))
            if where == NETWORK:
                owner = self.classes[NETWORK[:1]]
                parameter = None if owner is None else options.options_of(owner).get(str(NETWORK[-1]))
                base = None if parameter is None else class_in(parameter.annotation)
            class_type = None if base is None else self._chosen(where, base, None)
            for name in () if class_type is None else options.options_of(class_type):
                found.setdefault(name, (*where, "init_args", name))
        for name in self._tree["trainer"]:
            found.setdefault(name, ("trainer", name))
        return found

    # -- classes ----------------------------------------------------------------------------------------

    def _chosen(self, where: Path, base: type, asked_by: Setting | None) -> type | None:
        """The class that is named there; None where it is not to be had, which is said once."""
        if where not in self.classes:
            named = self._given.get((*where, "class_path"))
            if named is None:
                if asked_by is not None:
                    key = ".".join(map(str, (*where, "class_path")))
                    self._say(
                        f"{key} ({asked_by.origin}): is not set; name the class whose options these are"
                    )
                self.classes[where] = None
            else:
                found = self._imported(named, base)
                self.classes[where] = found if isinstance(found, type) else None
                if isinstance(found, str):
                    self._say(f"{named.place}: {found}")
        return self.classes[where]

    def _imported(self, named: Setting, base: type) -> type | str:
        """A class, or what speaks against it."""
        path = named.value
        if not isinstance(path, str):
            return f"{path!r} is no class; write package.Class"
        if "." not in path:
            known = offered(self._public, base)
            if path not in known:
                meant = nearest(path, known)
                hint = f"did you mean {meant!r}?" if meant else f"{REMEDY_NAME}; known: {', '.join(known)}"
                return f"there is no {path}; {hint}"
            return known[path]
        allowed = (*self._public, *self._trusted)
        if not is_below(path, allowed):
            return f"{path!r} may not be imported; {REMEDY_TRUST}"
        if self._trusted:
            make_trusted_found()
        module, _, name = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name, None)
        except Exception as error:  # the module is the user's own code
            words = " ".join(f"{type(error).__name__}: {error}".split())
            is_absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
            looked = f"; looked for in {folder_of_trusted()} and on PYTHONPATH" if is_absent else ""
            return f"cannot be imported: {words}{looked}"
        if found is None:
            classes = {key for key, value in vars(sys.modules[module]).items() if inspect.isclass(value)}
            meant = nearest(name, classes)
            return f"there is no {name} in {module}" + (f"; did you mean {meant!r}?" if meant else "")
        if not is_below(f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}", allowed):
            return f"{path!r} may not be imported; {REMEDY_TRUST}"
        if not (isinstance(found, type) and issubclass(found, base)):
            return f"{path} is no {base.__name__}; derive it from {base.__module__}.{base.__name__}"
        return found

    # -- several values ---------------------------------------------------------------------------------

    def _check_together(self, where: Path, class_type: type) -> None:
        """The rules of a class over all of its options."""
        nested = {
            str(path[-1]): chosen
            for path, chosen in self.classes.items()
            if path[:-1] == (*where, "init_args")
        }
        values = self.values.get(where, {})
        bad = self.in_doubt.get(where, set()) | {name for name, chosen in nested.items() if chosen is None}
        known = dict(list(options.options_of(class_type).items())[self._supplied.get(where, 0) :])
        for name, parameter in known.items():
            path = (*where, "init_args", name)
            is_given = any(given[: len(path)] == path for given in self._given)
            is_needed = parameter.default is parameter.empty
            if is_needed and not is_given and name not in bad and not self._is_linked(where, name):
                origin = self._given[(*where, "class_path")].origin
                words = in_words(parameter.annotation)
                self._say(f"{'.'.join(map(str, path))} ({origin}): is not set; it is {words}")
        linked = [name for name in LINKED if name in known and self._is_linked(where, name)]
        stand_ins = {name: 2 for name in linked if name not in values}
        for problem in options.problems(class_type, stand_ins | nested | values):
            if bad.isdisjoint((problem.name, *problem.rule.replace(",", " ").split())):
                setting = self._given.get((*where, "init_args", problem.name))
                key = ".".join(map(str, (*where, "init_args", problem.name)))
                place = key if setting is None else setting.place
                self._say(f"{place}: {_refused(problem.value, problem.rule)}")

    def _is_linked(self, where: Path, name: str) -> bool:
        """Whether the data decides this option: that of the model's, or of a network that the model is given."""
        return where[0] == "model" and name in LINKED

    def _say(self, problem: str) -> None:
        self.problems.append(problem)


def _refused(value: Any, rule: str) -> str:
    return (
        f"{options.shown(value)} is out of range; it {rule}"
        if rule.startswith("must ")
        else f"{options.shown(value)}: {rule}"
    )


def _written(path: Path, setting: Setting) -> str:
    """An option as it is written where this setting is: in a file, or on the command line."""
    if setting.text is None:
        return ".".join(map(str, path))
    return f"--{'.'.join(str(key) for key in path if key != 'init_args')}"


def offered(packages: Iterable[str], base: type) -> dict[str, type]:
    """The classes of a kind that packages offer, by bare name."""
    modules = [importlib.import_module(name) for name in packages]
    every = ((name, getattr(module, name)) for module in modules for name in module.__all__)
    return {name: found for name, found in every if isinstance(found, type) and issubclass(found, base)}

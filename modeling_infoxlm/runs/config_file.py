"""Recipes: a YAML or JSON file that holds a whole run, overridden by flags of the command line.

Every entry of a recipe becomes the flag of the same name, put before the flags that were typed. So a value
means the same in a recipe as on the command line (`2e-4` is a float, `131_072` an int, a wrong choice is
refused), and the last one given wins.
"""

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments

from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.flags import check_number
from modeling_infoxlm.runs.secrets import blot_secrets, holds_secret, takes_secret

RECIPE_SUFFIXES = (".yaml", ".yml", ".json")
# Of transformers' own flags those that `--help` shows; `--help_all` shows all.
_OFTEN_USED = set(
    "output_dir max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps "
    "learning_rate warmup_steps bf16 fp16 use_cpu seed dataloader_num_workers logging_steps save_steps "
    "save_total_limit eval_strategy eval_steps report_to push_to_hub hub_model_id".split()
)


class RecipeError(UsageError):
    """A recipe that cannot be used; its message is one clear line."""


def parse_args_with_config(
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    *,
    program: str | None = None,
    about: str | None = None,
) -> tuple[Any, ...]:
    """Build the dataclasses from `--config recipe.yaml` and the flags that override it.

    Instead of `--config FILE` the file may come first: `run_pretraining.py recipe.yaml --max_steps 10`.
    Every usage error (unknown flag or key, wrong value, unreadable recipe) ends the process with exit code 2
    and one line on standard error.

    Args:
        dataclass_types: Dataclasses whose fields are the flags, in the order in which `--help` shows them.
        argv: Arguments without the program's name, as in `sys.argv[1:]`.
        program: What is typed before them; None for the script's name.
        about: What `--help` says before the flags: purpose and examples.

    Returns:
        One instance of each dataclass, in the same order.

    Example:
        >>> parse_args_with_config([DataArguments], ["--config", "recipes/demo.yaml", "--mlm_examples", "4"])
    """
    parser = _RecipeParser(dataclass_types, program=program, about=about, show_all="--help_all" in argv)
    try:
        path, flags = _split_off_config(argv)
        _refuse_secrets(argv)
        recipe = {} if path is None else read_recipe(path)
        _refuse_secrets([f"--{name}={value}" for name, value in recipe.items()])
        arguments = parser.add_recipe(recipe, source=str(path)) + flags
        parser.refuse_unknown_flags(flags)
        # look_for_args_file: a stray `run_pretraining.args` beside the script would be read in silence.
        parsed = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError as error:  # RecipeError, or raised by the dataclasses' own checks
        parser.error(str(error))
    return parsed[: len(dataclass_types)]  # without the namespace that holds `config`


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file; scalars of YAML other than true, false and null stay the text that was written.

    Raises:
        RecipeError: If the file is missing, is no YAML or JSON, is no mapping, or names a key twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix == ".json":
            content = json.loads(text, object_pairs_hook=_unique_keys)
        else:
            content = yaml.load(text, Loader=_RecipeLoader)  # nosec B506: a SafeLoader
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"recipe {path} is not valid UTF-8 at byte {error.start:,}; save it as plain UTF-8 text."
        ) from error
    except (RecursionError, yaml.YAMLError, ValueError) as error:  # ValueError: a key given twice among it
        what = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise RecipeError(f"recipe {path} is malformed: {what}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(
            f"recipe {path} must be a mapping of flag names to values, not a {type(content).__name__}."
        )
    return content


class _RecipeLoader(yaml.SafeLoader):
    """YAML without YAML 1.1's surprises.

    There `no` (Norwegian), `on` and `y` are booleans, `2e-4` is a string, `010` is 8 and `12:30` is 750. Here
    only true, false and null are resolved; what every other scalar means is left to the type of its flag.
    """

    # Replaced, not changed in place: the table of the base class is shared by all loaders.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; a key given twice is refused (PyYAML would keep the last one in silence)."""
        mapping = super().construct_mapping(node, deep=deep)
        _unique_keys([(self.construct_object(key, deep=True), None) for key, _ in node.value])
        return mapping


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF")
)
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$", re.I), ["n", "N", "~", ""]
)


def _unique_keys(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if key in result:
            raise RecipeError(f"the key {key} is given twice; keep one.")
        result[key] = value
    return result


def _split_off_config(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Take the recipe's path out of the arguments, given as a leading file name or by --config."""
    given = list(argv)
    if given and not given[0].startswith("-") and given[0].endswith(RECIPE_SUFFIXES):
        given.insert(0, "--config")
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, flags = finder.parse_known_args(given)
    except argparse.ArgumentError as error:
        raise RecipeError("--config needs a file: --config recipes/demo.yaml") from error
    if len(found.config) > 1:
        names = ", ".join(found.config)
        raise RecipeError(f"give one recipe, not {len(found.config)} ({names}); flags override its values.")
    return (Path(found.config[0]) if found.config else None), flags


def _refuse_secrets(arguments: Sequence[str]) -> None:
    """Refuse tokens and passwords as values of other flags, from where they get into records, logs and cards.

    Raises:
        RecipeError: With the flag, and without the secret.
    """
    flag = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        flag = name if argument.startswith("-") else flag
        if holds_secret(value if argument.startswith("-") and equals else argument) and not takes_secret(
            flag
        ):
            raise RecipeError(
                f"{blot_secrets(flag) or 'an argument'} holds what looks like an access token or a password, "
                "which does not belong there; `hf auth login` stores a token, or --token takes it."
            )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Each flag once, under its own name, with the kind of value it takes; no default where there is none."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = next(name for name in action.option_strings if name.startswith("--"))
        return f"{name} {self._format_args(action, 'VALUE')}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, "", []) else action.help


class _RecipeParser(HfArgumentParser):
    """HfArgumentParser that accepts a recipe, suggests names and reports usage errors in one line."""

    def __init__(
        self,
        dataclass_types: Sequence[Any],
        *,
        program: str | None = None,
        about: str | None = None,
        show_all: bool = False,
    ) -> None:
        # allow_abbrev: `--config_n` or `--learn` would be guessed.
        super().__init__(
            tuple(dataclass_types),
            allow_abbrev=False,
            prog=program,
            usage="%(prog)s [--config FILE] [--FLAG VALUE ...]",
            description=about,
            formatter_class=_HelpFormatter,
        )
        self.add_argument(
            "--config", metavar="FILE", help="recipe (YAML or JSON) whose values the flags override"
        )
        if any(issubclass(kind, TrainingArguments) for kind in dataclass_types):
            self.add_argument(
                "--help_all", action="help", help="show all flags of transformers' Trainer as well"
            )
            if not show_all:
                self._hide_trainer_flags(dataclass_types)
        self.hints = {
            field.name: get_type_hints(kind)[field.name]
            for kind in dataclass_types
            for field in dataclasses.fields(kind)
            if field.init
        }
        for action in self._actions:
            if action.type in (int, float):
                action.metavar = "NUMBER"
                action.type = _checked_number(action)
        self.recipe: dict[str, Any] = {}
        self.recipe_source = ""
        self.typed_flags: set[str] = set()

    def _hide_trainer_flags(self, dataclass_types: Sequence[Any]) -> None:
        inherited: set[str] = set()
        for kind in dataclass_types:
            if issubclass(kind, TrainingArguments):
                inherited |= {field.name for field in dataclasses.fields(TrainingArguments)}
                for parent in kind.__mro__[: kind.__mro__.index(TrainingArguments)]:
                    inherited -= set(vars(parent).get("__annotations__", {}))
        hidden = [action for action in self._actions if action.dest in inherited - _OFTEN_USED]
        for action in hidden:
            action.help = argparse.SUPPRESS
        if hidden:
            self.epilog = f"--help_all lists {len(hidden)} more flags, those of transformers' Trainer."

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one line; argparse would print a usage of some 200 flags first."""
        where = self._where(message)
        message = re.sub(r"^argument --(\w+)\S*: (?=must )", r"\1 ", " ".join(message.split()))
        line = f"{self.prog}: error: {where}{message}"
        self.exit(2, f"{blot_secrets(line)}\n")

    def _where(self, message: str) -> str:
        """Name the recipe if the flag that is complained about came from there."""
        named = re.match(r"argument --(\w+)", message)
        in_recipe = named is not None and named[1] in self.recipe and named[1] not in self.typed_flags
        return f"recipe {self.recipe_source}: " if in_recipe else ""

    def add_recipe(self, recipe: Mapping[str, Any], *, source: str) -> list[str]:
        """Return the recipe's values as flags; values that no flag can express become defaults.

        Raises:
            RecipeError: If a key is unknown or a value has a form that its flag cannot take.
        """
        flags: list[str] = []
        for name, value in recipe.items():
            if name not in self.hints:
                raise RecipeError(f"recipe {source}: unknown key {name}{self._suggestion(str(name))}")
            try:
                flags += self._as_flags(name, value)
            except RecipeError as error:
                raise RecipeError(f"recipe {source}: {error}") from error
            except RecursionError as error:
                raise RecipeError(f"recipe {source}: {name} is nested too deeply.") from error
        self.recipe, self.recipe_source = dict(recipe), source
        return flags

    def _as_flags(self, name: str, value: Any) -> list[str]:
        alternatives = (self.hints[name], *get_args(self.hints[name]))
        kinds = {get_origin(form) or form for form in alternatives}
        if value is None:
            if type(None) not in kinds:
                raise RecipeError(f"{name} must have a value; remove the line to keep its default.")
            self.set_defaults(**{name: None})
            return []
        if isinstance(value, dict):
            if dict not in kinds:
                raise RecipeError(f"{name} takes a value, not a mapping.")
            return [f"--{name}={json.dumps(_typed(value))}"]
        if not isinstance(value, list):
            return [f"--{name}={value}"]
        if list not in kinds:
            raise RecipeError(f"{name} takes one value, not a list of {len(value)}.")
        if any(isinstance(item, list | dict) or item is None for item in value):
            raise RecipeError(f"{name} takes a flat list of values.")
        # Empty, or `str | list[str]`, whose flag takes one value only: no flag can say it.
        if not value or str in kinds:
            self.set_defaults(**{name: value})
            return []
        return [f"--{name}", *map(str, value)]

    def refuse_unknown_flags(self, flags: Sequence[str]) -> None:
        """End with exit code 2 if a typed argument belongs to no flag (HfArgumentParser: a traceback)."""
        self.typed_flags = {self._flag_name(flag) for flag in flags if flag.startswith("--")}
        _, unknown = self.parse_known_args(list(flags))
        if not unknown:
            return
        first = unknown[0]
        if first.startswith("--"):
            self.error(
                f"unknown flag {first.partition('=')[0]}{self._suggestion(self._flag_name(first), '--')}"
            )
        self.error(
            f"unexpected argument {first!r}; "
            "a flag that takes one value was given several, or its name is missing."
        )

    @staticmethod
    def _flag_name(flag: str) -> str:
        return flag.partition("=")[0].lstrip("-").replace("-", "_")

    def _suggestion(self, name: str, prefix: str = "") -> str:
        nearest = difflib.get_close_matches(name, self.hints, n=1)
        return f"; did you mean {prefix}{nearest[0]}?" if nearest else "; --help lists the flags."


def _checked_number(action: argparse.Action) -> Callable[[str], float]:
    """The type of a flag that takes a number; its default, a sign for something else, is always allowed."""
    kind = cast(type, action.type)

    def number(text: str) -> float:
        value: float = kind(text)
        if value != action.default:
            try:
                check_number(action.dest, value)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from error
        return value

    number.__name__ = kind.__name__  # argparse shows it: invalid int value
    return number


def _typed(value: Any) -> Any:
    """Turn the texts inside a mapping into numbers where they are some: no flag's type says it for them."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value

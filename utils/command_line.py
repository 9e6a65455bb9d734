"""What all commands have in common: help that fits a screen, errors of one line, quiet pipes.

Nothing heavy is imported before the arguments are read, so that `--help` and completion answer at once.
"""

import argparse
import difflib
import io
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from .lazy import what_to_install

NAME = "concept-encoder"
RECIPE_FIELDS = "concept_encoder.trainers.recipes"
PROTOCOL_FIELDS = "concept_encoder.eval.benchmarks.protocols"
CLOSED_PIPE = 141  # 128 + SIGPIPE, what a shell says of `cat` before `head`
INTERRUPTED = 130  # 128 + SIGINT


class HelpFormatter(argparse.HelpFormatter):
    """Fills prose, leaves indented examples as they are, and says a default where there is one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26)

    def add_usage(self, usage, actions, groups, prefix=None):
        required = [action for action in actions if action.required or not action.option_strings]
        if len(required) < len(list(actions)):
            self._prog += " [options]"
        super().add_usage(usage, required, groups, prefix)

    def _fill_text(self, text, width, indent):
        paragraphs = text.strip().split("\n\n")
        filled = [each if each.startswith("    ") else textwrap.fill(each, width) for each in paragraphs]
        return "\n\n".join(filled)

    def _get_help_string(self, action):
        text, default = action.help or "", action.default
        silent = any(default is each for each in (None, False, argparse.SUPPRESS)) or default == []
        if silent or not action.option_strings or "default" in text:
            return text
        return f"{text} (default: {' '.join(map(str, default)) if isinstance(default, list) else '%(default)s'})"

    def _get_default_metavar_for_optional(self, action):
        if action.dest.endswith("_dir"):
            return "DIR"
        return {int: "N", float: "X"}.get(action.type, action.dest.upper())

    def _get_default_metavar_for_positional(self, action):
        return action.dest.upper()


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose errors are one line on stderr, and exit code 2."""

    def __init__(self, **options: Any):
        super().__init__(**{**options, "formatter_class": HelpFormatter, "allow_abbrev": False, "add_help": False})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(' '.join(message.split()))}\n")

    def parse_known_args(self, args=None, namespace=None):
        """As usual, with a home folder (~) written out, which a shell leaves behind a `=`; words are UTF-8."""
        given = None if args is None else [_at_home(word) for word in args]
        found, unknown = super().parse_known_args(given, namespace)
        values = [value if isinstance(value, list) else [value] for value in (*vars(found).values(), unknown)]
        for word in (str(each) for some in values for each in some):
            if word != word.encode(errors="replace").decode():
                self.error(f"{word} is not UTF-8 as this terminal gives it; set LC_ALL=C.UTF-8, or PYTHONUTF8=1")
        return found, unknown


class Command(Parser):
    """The parser of a command: its module's docstring is the help, with purpose, example and exit codes.

    An option has no default of its own: what is not typed is left to the function that does the work.

    Args:
        file: `__file__` of the module; the command has its name, with dashes.
        doc: `__doc__` of the module.
    """

    def __init__(self, file: str, doc: str | None):
        path = Path(file)
        is_ours = path.parent.name == "scripts"  # and not one of this repository's own, which are run as files
        super().__init__(prog=f"{NAME} {command_name(path.stem)}" if is_ours else path.name, description=doc)
        self.home: str | None = None
        self.sections: tuple[list[str], ...] = ()
        self.words: list[str] = []
        self.add_argument("-h", "--help", action="help", help="show this and stop")

    def add_argument(self, *words: Any, names: Iterable[str] = (), **options: Any) -> argparse.Action:
        """As usual; `names` are what completion offers."""
        action = super().add_argument(*words, **options)
        if names:
            setattr(action, "completer", lambda **_: names)  # noqa: B010 (argcomplete asks for it)
        return action

    def accept(self, home: str, *sections: list[str]) -> None:
        """Let fields follow as `--field value`.

        Args:
            home: module whose `fields_from_words` reads them and whose `fields_help` lists them.
            sections: what those two are told besides.
        """
        self.home, self.sections = home, sections
        text = "list every field that can follow as --field value, and stop"
        self.add_argument("--fields", action=_ListFields, help=text)

    def fields(self) -> dict[str, Any]:
        """Name -> value of the fields that were typed; ValueError as their home has it."""
        assert self.home is not None
        try:
            return import_module(self.home).fields_from_words(self.words, *self.sections)
        except ValueError as error:  # of a word that is no field, but may be like an option
            names = (word.partition("=")[0] for word in self.words if word.startswith("--"))
            name = next((name for name in names if f"unknown field {name[2:]!r}" == str(error)), None)
            hint = "" if name is None else did_you_mean(name, self._option_string_actions)
            raise ValueError(f"{error}{hint}") from None

    def parse_args(self, args=None, namespace=None):
        # Options may stand between words, but for fields, which only their home knows from words.
        read = self.parse_known_intermixed_args if self.home is None else self.parse_known_args
        arguments, unknown = read(args, namespace)
        self.words = unknown
        if unknown and self.home is None:
            name = unknown[0].partition("=")[0]
            self.error(f"unknown argument {name!r}{did_you_mean(name, self._option_string_actions)}")
        return arguments

    def typed(self, args: list[str] | None = None) -> dict[str, Any]:
        """Name -> value of what was typed, without the fields."""
        found = vars(self.parse_args(args))
        return {name: value for name, value in found.items() if value is not None and value is not False}

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """The work of a command: what a user can cause, inside of this, ends in one line and exit code 2, Ctrl-C in
        one line and 130, an error with an `exit_status`, such as `TrainingStopped`, in one line and that."""
        if _Shell.started_this:
            _settle()
        try:
            yield
        except BrokenPipeError:
            raise
        except KeyboardInterrupt as error:
            self.exit(INTERRUPTED, f"{self.prog}: {str(error) or 'interrupted'}\n")
        except Exception as error:
            if isinstance(error, _user_errors()):
                self.error(str(error))
            status = getattr(error, "exit_status", None)
            if status is None:
                raise
            self.exit(status, f"{self.prog}: {error}\n")

    def suggest_again(self, argv: list[str]) -> None:
        """Say the same command without `--dry_run`."""
        say(f"Next: {shlex.join([*self.prog.split(), *(word for word in argv if word != '--dry_run')])}")


def command_name(module: str) -> str:
    """Name of the command that is in a module of scripts/."""
    return module.replace("_", "-")


def command_to_type(name: str, *words: str | os.PathLike) -> str:
    """A command as it is typed, on any machine."""
    return shlex.join([NAME, name, *(os.fspath(word) for word in words)])


def suggest(name: str, *words: str | os.PathLike) -> None:
    """Say the command to type next."""
    say(f"Next: {command_to_type(name, *words)}")


def _at_home(word: str) -> str:
    option, is_option, value = word.partition("=")
    if is_option and option.startswith("--") and value.startswith("~/"):
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(word) if word.startswith("~/") else word


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What to put after an unknown name: those that are like it, or nothing."""
    close = difflib.get_close_matches(str(name), known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def printable(text: str) -> str:
    """`text` for a terminal: what moves the cursor, hides or turns letters around is written as its escape."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def say(*lines: str) -> None:
    """On stderr: stdout is for results."""
    print(*lines, sep="\n", file=sys.stderr)


def run(main: Callable[[], None]) -> None:
    """`main` of a command that was started from a shell: no traceback where a pipe is closed or Ctrl-C is typed."""
    _Shell.started_this = True
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no such letter is shown its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        say(str(error) or "interrupted")
        raise SystemExit(INTERRUPTED) from None
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "concept_encoder":
            raise
        say(f"{NAME}: error: {what_to_install(error, 'the command')}")
        raise SystemExit(2) from None
    except BrokenPipeError:
        # Python would complain when it flushes stdout again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED_PIPE) from None


class _Shell:
    started_this = False  # process; a test that calls a command's `main` is another's


def _settle() -> None:
    """No bars in a log, and no time for tiny numbers.

    Numbers below 1e-38 count as 0, since a CPU takes a hundred times as long for products of them, and gradients
    through sharp attention are full of them. Threads inherit that, if it comes before the first of them.
    """
    import torch

    from .progress import silence_libraries

    silence_libraries()
    torch.set_flush_denormal(True)


class _ListFields(argparse.Action):
    def __init__(self, option_strings, dest, help):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        print(import_module(parser.home).fields_help(*parser.sections))
        parser.exit()


def _user_errors() -> tuple[type[BaseException], ...]:
    """Looked up when there is one: the Hub's errors take half a second to import."""
    from huggingface_hub.errors import HTTPError, StrictDataclassError

    return ValueError, OSError, MemoryError, FloatingPointError, StrictDataclassError, HTTPError

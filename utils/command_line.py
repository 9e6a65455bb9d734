"""What the command lines of all scripts have in common: help that fits a screen, errors of one line, quiet pipes."""

import argparse
import difflib
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub.errors import HTTPError, StrictDataclassError

from .progress import silence_libraries
from .untrusted import printable

USER_ERRORS = (ValueError, OSError, MemoryError, FloatingPointError, StrictDataclassError, HTTPError)
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


class Command(Parser):
    """The parser of a script: its docstring is the help, with purpose, example and exit codes.

    Args:
        file: `__file__` of the script.
        doc: `__doc__` of the script.
    """

    def __init__(self, file: str, doc: str | None):
        super().__init__(prog=Path(file).name, description=doc)
        self.folder = Path(file).parent
        self.add_argument("-h", "--help", action="help", help="show this and stop")

    def accept(self, fields: argparse.ArgumentParser, besides: tuple[str, ...] = ()) -> None:
        """Let every option of `fields` follow too, but for those that this parser has already and `besides`.

        They are not in the help: `--fields` lists them. The words are left as they are, as `arguments.overrides`.
        """
        text = "list every field that can follow as --field value, and stop"
        self.add_argument("--fields", action=_ListFields, listing=fields, help=text)
        self.set_defaults(overrides=[])
        for action in fields._actions:
            own = [name for name in action.option_strings if name not in self._option_string_actions]
            own = [name for name in own if name.lstrip("-") not in besides]
            if own:
                self.add_argument(*own, dest="overrides", nargs=action.nargs, action=_Override, help=argparse.SUPPRESS)

    def parse_args(self, args=None, namespace=None):
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(f"unknown argument {name!r}{did_you_mean(name, self._option_string_actions)}")
        return arguments

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """What a user can cause, inside of this, ends in one line and exit code 2; Ctrl-C in one and 130."""
        try:
            yield
        except BrokenPipeError:
            raise
        except USER_ERRORS as error:
            self.error(str(error))
        except KeyboardInterrupt as error:
            self.exit(INTERRUPTED, f"{self.prog}: {str(error) or 'interrupted'}\n")
        except Exception as error:
            status = getattr(error, "exit_status", None)  # of one that was asked to stop, such as TrainingStopped
            if status is None:
                raise
            self.exit(status, f"{self.prog}: {error}\n")

    def suggest(self, script: str, *words: str | Path) -> None:
        """Say the command to type next."""
        found = shutil.which("python")
        python = "python" if found == sys.executable else _short(sys.executable)
        say(f"Next: {shlex.join([python, _short(self.folder / script), *map(str, words)])}")

    def suggest_again(self, argv: list[str]) -> None:
        """Say the same command without `--dry_run`."""
        self.suggest(self.prog, *(word for word in argv if word != "--dry_run"))


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What to put after an unknown name: those that are like it, or nothing."""
    close = difflib.get_close_matches(str(name), known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def say(*lines: str) -> None:
    """On stderr: stdout is for results."""
    print(*lines, sep="\n", file=sys.stderr)


def run(main: Callable[[], None]) -> None:
    """`main` of a script that was started from a shell: no bars in a log, no traceback where a pipe is closed.

    Numbers below 1e-38 count as 0, since a CPU takes a hundred times as long for products of them, and gradients
    through sharp attention are full of them. Threads inherit that, if it comes before the first of them.
    """
    silence_libraries()
    torch.set_flush_denormal(True)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        say(str(error) or "interrupted")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # Python would complain when it flushes stdout again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED_PIPE) from None


def _short(path: str | Path) -> str:
    """As seen from the working directory, if it is below."""
    path = os.path.abspath(path)
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


class _ListFields(argparse.Action):
    def __init__(self, option_strings, dest, listing, help):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self.listing = listing

    def __call__(self, parser, namespace, values, option_string=None):
        self.listing.print_help()
        parser.exit()


class _Override(argparse.Action):
    """Keeps the words of a field as they were given."""

    def __call__(self, parser, namespace, values, option_string=None):
        if isinstance(values, list):
            words = [option_string, *values]
        else:
            words = [option_string] if values is None else [f"{option_string}={values}"]
        namespace.overrides = [*namespace.overrides, *words]

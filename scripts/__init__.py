"""Concept encoders: text compressed into a few learned concept vectors.

    concept-encoder pretrain tiny
    concept-encoder pretrain --help

Completion by the Tab key, in bash and zsh:

    eval "$(register-python-argcomplete concept-encoder)"
"""

import os
import sys
from importlib import import_module
from typing import Any

from concept_encoder import __version__
from concept_encoder.utils.command_line import NAME, Parser, command_name, did_you_mean, run

# In the order of the work.
COMMANDS = (
    "pretrain analyze similarity retrieval finetune compare report judge explore encode search generate push export "
    "whiten check_code build_corpus train_tokenizer pretrain_twin import_checkpoint"
).split()


def main() -> None:
    """The command `concept-encoder`. Of its modules only that of the command that is typed is imported."""
    run(_main)


def _main() -> None:
    words = sys.argv[1:] or ["--help"]
    modules = {command_name(name): name for name in COMMANDS}
    if "_ARGCOMPLETE" in os.environ:  # the Tab key: the words are elsewhere, and the answer ends the process
        from argcomplete import autocomplete

        autocomplete(_parser(modules))
    if words[0] in modules:
        _module(modules[words[0]]).main(words[1:])
        return
    parser = _parser(modules)
    if not words[0].startswith("-"):
        parser.error(f"unknown command {words[0]!r}{did_you_mean(words[0], modules)}")
    parser.parse_args(words)


def _module(name: str) -> Any:
    return import_module(f"concept_encoder.scripts.{name}")


def _parser(modules: dict[str, str]) -> Parser:
    """Every command with its options, as help and completion show them."""
    parser = Parser(prog=NAME, description=__doc__)
    parser.add_argument("-h", "--help", action="help", help="show this and stop")
    parser.add_argument("--version", action="version", version=__version__, help="print the version and stop")
    options: dict[str, Any] = {"parser_class": lambda prog, module: module.command()}
    commands = parser.add_subparsers(metavar="COMMAND", **options)
    for name, module in modules.items():
        found = _module(module)
        commands.add_parser(name, module=found, help=found.__doc__.partition(".\n")[0])
    return parser

"""Say whose code a checkpoint carries, before any of it is run.

    concept-encoder check-code owner/name --diff

Of an id on the Hub only Python and JSON files are fetched. Prints the commit to pin, for each Python file whether it
is this package's, by SHA-256, and all else that may run: classes that JSON files name, libraries, pickles. Nothing of
it is imported.

Exit code 0 all that can run is this package's, 1 something is not or cannot be known, 2 bad input.
"""

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, printable, run


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="folder, or Hub id")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id (default: main)")
    parser.add_argument("--diff", action="store_true", help="print how each file differs")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    diff = arguments.pop("diff", False)
    with parser.refusing():
        found = ce.check_code(**arguments)
    if found.commit is not None:
        print(f'{printable(arguments["checkpoint"])} at revision="{found.commit}"')
    for file in found.files:
        print(file.verdict)
        if diff:
            print(*file.difference, sep="\n", end="\n" if file.difference else "")
    for line in found.elsewhere:
        print(line)
    if not found.files:
        print("It carries no Python file: only the installed package loads it.")
    if not found.own:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)

"""Whose code a checkpoint carries, before any of it is run: python scripts/check_code.py CHECKPOINT [--diff]

CHECKPOINT is a folder, or an id on the Hub, of which only Python and JSON files are fetched. Prints the commit to pin,
and for each Python file whether it is this package's, by SHA-256; `--diff` prints the difference too. Nothing of it is
imported. Exit code 0 all of it is this package's, 1 something differs, 2 bad input.
"""

import argparse

from huggingface_hub.errors import HTTPError

from concept_encoder.eval.code import code_of


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="check_code.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder, or owner/name on the Hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit on the Hub (default: main)")
    parser.add_argument("--diff", action="store_true", help="print how each file differs")
    arguments = parser.parse_args(argv)
    try:
        found = code_of(arguments.checkpoint, arguments.revision)
    except (ValueError, OSError, HTTPError) as error:
        parser.error(" ".join(str(error).split()))
    if found.commit is not None:
        print(f'{arguments.checkpoint} at revision="{found.commit}"')
    for file in found.files:
        print(file.verdict)
        if arguments.diff:
            print(*file.difference, sep="\n", end="\n" if file.difference else "")
    for line in found.elsewhere:
        print(line)
    if not found.files:
        print("It carries no Python file: only the installed package loads it.")
    if found.elsewhere or not all(file.equal for file in found.files):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

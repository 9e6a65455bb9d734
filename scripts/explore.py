"""Look at the concepts of a checkpoint in the browser.

    concept-encoder explore
    concept-encoder explore runs/mine
    concept-encoder explore you/mine --revision COMMIT --space_dir space

Needs the extra: pip install "concept-encoder[explore]". What a checkpoint cannot do, the page says.
"""

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run, say


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", nargs="?", help="run folder or Hub id (default: box, the model of the package)")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--corpus", help="index or shards of this checkpoint, to search in a tab")
    parser.add_argument("--space_dir", help="write the folder of a Space there, and serve nothing")
    parser.add_argument("--port", type=int, help="of the page (default: the first free one from 7860)")
    parser.add_argument("--no_browser", action="store_true", help="print the address and open nothing")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    with parser.refusing():
        if "space_dir" in arguments:
            _write_space(arguments)
        else:
            open_browser = not arguments.pop("no_browser", False)
            ce.explore(open_browser=open_browser, **arguments)


def _write_space(arguments: dict) -> None:
    from concept_encoder.eval.explorer.space import write_space

    checkpoint, folder = arguments.get("checkpoint"), arguments["space_dir"]
    if checkpoint is None:
        raise ValueError("--space_dir needs the Hub id of a published checkpoint")
    commit = write_space(checkpoint, arguments.get("revision"), folder)
    say(f"Written to {folder}: the explorer of {checkpoint} at commit {commit}.")
    say(f"Try it: python {folder}/app.py")
    say(f"Next: hf upload OWNER/concept-explorer {folder} --repo-type space")


if __name__ == "__main__":
    run(main)

"""Look at the concepts of a checkpoint in the browser.

    python scripts/explore.py
    python scripts/explore.py runs/mine
    python scripts/explore.py you/mine --revision COMMIT --space_dir space

Needs the extra: pip install -e ".[explore]". What a checkpoint cannot do, the page says.
"""

from argparse import Namespace
from pathlib import Path

from concept_encoder.eval.explorer.explorer import load_explorer, newest_run
from concept_encoder.eval.explorer.space import write_space
from concept_encoder.utils.command_line import Command, run, say

RUNS = Path(__file__).resolve().parents[1] / "runs"


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", nargs="?", help="run folder or Hub id (default: newest runs/microworld-*)")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--space_dir", help="write the folder of a Space there, and serve nothing")
    parser.add_argument("--port", type=int, help="of the page (default: the first free one from 7860)")
    parser.add_argument("--no_browser", action="store_true", help="print the address and open nothing")
    args = parser.parse_args(argv)
    try:
        from concept_encoder.eval.explorer.app import build_app, launch_app
    except ImportError as error:
        parser.error(f'{error}; the explorer needs the extra: pip install -e ".[explore]"')
    with parser.refusing():
        if args.space_dir is not None:
            _write_space(args)
            return
        checkpoint = args.checkpoint or str(newest_run(RUNS))
        app = build_app(load_explorer(checkpoint, args.revision))
    launch_app(app, server_port=args.port, inbrowser=not args.no_browser)


def _write_space(args: Namespace) -> None:
    if args.checkpoint is None:
        raise ValueError("--space_dir needs the Hub id of a published checkpoint")
    commit = write_space(args.checkpoint, args.revision, args.space_dir)
    say(f"Written to {args.space_dir}: the explorer of {args.checkpoint} at commit {commit}.")
    say(f"Try it: python {args.space_dir}/app.py")
    say(f"Next: hf upload OWNER/concept-explorer {args.space_dir} --repo-type space")


if __name__ == "__main__":
    run(main)

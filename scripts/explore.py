"""Look at the concepts of a checkpoint in the browser.

    python scripts/explore.py                          # the newest run of `make run`
    python scripts/explore.py runs/mine
    python scripts/explore.py you/checkpoint --revision COMMIT
    python scripts/explore.py you/checkpoint --revision COMMIT --space_dir space   # writes a Space, serves nothing

Needs the extra: pip install -e ".[explore]". What a checkpoint cannot do, the page says.
"""

import argparse
from pathlib import Path

from concept_encoder.eval.explorer import load_explorer, newest_run
from concept_encoder.eval.space import write_space

RUNS = Path(__file__).resolve().parents[1] / "runs"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", nargs="?", help="run folder or Hub id (default: newest runs/microworld-*)")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--space_dir", help="write the folder of a Space there, and serve nothing")
    parser.add_argument("--port", type=int, help="of the page (default: the first free one from 7860)")
    parser.add_argument("--no_browser", action="store_true", help="print the address and open nothing")
    args = parser.parse_args(argv)
    try:
        from concept_encoder.eval.explorer_app import build_app, launch_app
    except ImportError as error:
        parser.error(f'{error}; the explorer needs the extra: pip install -e ".[explore]"')
    try:
        if args.space_dir is not None:
            _write_space(args)
            return
        checkpoint = args.checkpoint or str(newest_run(RUNS))
        app = build_app(load_explorer(checkpoint, args.revision))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    launch_app(app, server_port=args.port, inbrowser=not args.no_browser)


def _write_space(args: argparse.Namespace) -> None:
    if args.checkpoint is None:
        raise ValueError("--space_dir needs the Hub id of a published checkpoint")
    commit = write_space(args.checkpoint, args.revision, args.space_dir)
    print(f"Written to {args.space_dir}: the explorer of {args.checkpoint} at commit {commit}.")
    print(f"Try it: python {args.space_dir}/app.py")
    print(f"Next: hf upload OWNER/concept-explorer {args.space_dir} --repo-type space")


if __name__ == "__main__":
    main()

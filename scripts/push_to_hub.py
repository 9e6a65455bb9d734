"""Publish a run on the Hub.

    python scripts/push_to_hub.py runs/mine --repo_id owner/name --dry_run

RUN_DIR is the folder that pretrain.py wrote and report.py reported on, or the folder of a fine-tuned model
(finetune/TASK.PROTOCOL/model). Weights, configuration, code, tokenizer, recipe, report and a card go up as one commit,
and only what loads: every Auto class is tried in a process without this package, before the push on the folder and
after it on a fresh download, and every tensor is compared. Then it says "done".

The token is the one of `hf auth login` or HF_TOKEN. Exit code 0 done, 1 the Hub or the check said no, 2 bad input.
"""

import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from concept_encoder.eval.hub.publishing import CARD_FILE, assemble, checkpoints, explain, push, verify
from concept_encoder.utils.command_line import Command, run


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    arguments = parser.parse_args(argv)
    with parser.refusing():
        try:
            _check(arguments)
            _publish(parser, arguments)
        except BrokenPipeError:  # of stdout, not of the Hub
            raise
        except (HTTPError, LocalTokenNotFoundError, ConnectionError) as error:
            parser.exit(1, f"{parser.prog}: error: {explain(error, arguments.repo_id)}\n")
    if arguments.dry_run:
        parser.suggest_again(argv)


def _parser() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a run, or of a fine-tuned model")
    parser.add_argument("--repo_id", required=True, help="owner/name on the Hub; made when it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", default="main", help="branch to push to")
    parser.add_argument("--checkpoints", action="store_true", help="push each checkpoint-N too, to the branch step-N")
    parser.add_argument("--license", default="apache-2.0", help="of the weights, as the Hub names it")
    parser.add_argument("--language", default="en", help="of the texts, ISO 639-1")
    parser.add_argument("--base_model", help="Hub id of the checkpoint that a fine-tuned model was made from")
    parser.add_argument("--dry_run", action="store_true", help="check and list what would go up, without a token")
    return parser


def _check(arguments: Namespace) -> None:
    if not arguments.run_dir.is_dir():
        raise ValueError(f"run folder {str(arguments.run_dir)!r} does not exist; give the --output_dir of a run")
    validate_repo_id(arguments.repo_id)
    if "/" not in arguments.repo_id:
        raise ValueError(f"--repo_id must be owner/name, got {arguments.repo_id!r}")


def _publish(parser: Command, arguments: Namespace) -> None:
    """The intermediate checkpoints first, so that "done" is about everything."""
    card = {name: getattr(arguments, name) for name in ("license", "language", "base_model")}
    for step, folder in checkpoints(arguments.run_dir) if arguments.checkpoints else []:
        note = f"Intermediate checkpoint of step {step:,}. The model at the end of training is on the branch main."
        _publish_one(parser, arguments, folder, f"step-{step}", {**card, "note": note})
    _publish_one(parser, arguments, arguments.run_dir, arguments.revision, card)


def _publish_one(parser: Command, arguments: Namespace, source: Path, revision: str, card: dict) -> None:
    repo_id = arguments.repo_id
    with tempfile.TemporaryDirectory(prefix="push-") as scratch:
        folder = Path(scratch)
        notes = assemble(source, folder, repo_id, **card)
        print(f"{source} -> {repo_id}, {revision}")
        for line in _listing(folder):
            print(f"  {line}")
        for note in notes:
            print(f"  note: {note}")
        _refuse(parser, verify(folder, str(folder)), "nothing was pushed. Mend the checkpoint, or save it anew")
        print("  loads: every Auto class, in a process without this package; no weight new, none changed")
        _validate_card(folder, must=not arguments.dry_run)
        if arguments.dry_run:
            print("dry run: nothing was pushed")
            return
        commit = push(folder, repo_id, revision, arguments.private, message=f"Push {source.name}")
        way_out = f"do not use {repo_id} at {commit.oid}. Run the same command again; if it stays so, open an issue"
        _refuse(parser, verify(folder, repo_id, commit.oid), way_out)
    print("  downloaded and loaded again: every tensor is the local one")
    print(f"done: {constants.ENDPOINT}/{repo_id}/tree/{commit.oid}")


def _validate_card(folder: Path, must: bool) -> None:
    """The Hub's own check of the metadata; a dry run does without when the Hub cannot be reached."""
    try:
        ModelCard.load(folder / CARD_FILE).validate()
    except (HTTPError, ConnectionError) as error:
        if must:
            raise
        print(f"  card: metadata not checked, no answer from {constants.ENDPOINT} ({type(error).__name__})")
    else:
        print("  card: the Hub accepts its metadata")


def _refuse(parser: Command, wrong: list[str], way_out: str) -> None:
    if wrong:
        parser.exit(1, f"{parser.prog}: error: {'; '.join(wrong)}. So {way_out}\n")


def _listing(folder: Path) -> list[str]:
    """A line for each file, and one for the figures."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    lines = [f"{_size(path.stat().st_size):>9}  {path.name}" for path in files]
    figures = list((folder / "figures").glob("*"))
    if figures:
        lines.append(f"{_size(sum(path.stat().st_size for path in figures)):>9}  figures/ ({len(figures)} files)")
    return lines


def _size(size: int) -> str:
    return f"{size} B" if size < 1000 else f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    run(main)

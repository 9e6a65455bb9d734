"""Publish a run on the Hub.

    concept-encoder push runs/mine --repo_id owner/name --dry_run

RUN_DIR is the folder that `pretrain` wrote and `report` reported on, or the folder of a fine-tuned model
(finetune/TASK.PROTOCOL/model). Weights, configuration, code, tokenizer, recipe, report and a card go up as one commit,
and only what loads: every Auto class is tried in a process without this package, before the push on the folder and
after it on a fresh download, and every tensor is compared. Then it says "done". The folder of an encoded corpus
becomes a data set: its shards and their card.

The token is the one of `hf auth login` or HF_TOKEN. Exit code 0 done, 1 the Hub or the check said no, 2 bad input.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run

if TYPE_CHECKING:
    from concept_encoder.eval.hub.pushing import Upload


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a run, or of a fine-tuned model")
    parser.add_argument("--repo_id", required=True, help="owner/name on the Hub; made when it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--checkpoints", action="store_true", help="push each checkpoint-N too, to the branch step-N")
    parser.add_argument("--license", help="of the weights, as the Hub names it (default: apache-2.0)")
    parser.add_argument("--language", help="of the texts, ISO 639-1 (default: en)")
    parser.add_argument("--base_model", help="Hub id of the checkpoint that a fine-tuned model was made from")
    parser.add_argument("--dry_run", action="store_true", help="check and list what would go up, without a token")
    return parser


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = command()
    arguments = parser.typed(argv)
    with parser.refusing():
        from concept_encoder.eval.hub.pushing import PublishError

        try:
            uploads = ce.push(arguments.pop("run_dir"), **arguments)
        except PublishError as error:
            parser.exit(1, f"{parser.prog}: error: {error}\n")
    for upload in uploads:
        _print_upload(upload)
    if "dry_run" in arguments:
        parser.suggest_again(argv)


def _print_upload(upload: "Upload") -> None:
    from huggingface_hub import constants

    print(f"{upload.source} -> {upload.repo_id}, {upload.revision}")
    figures = [size for name, size in upload.files.items() if name.startswith("figures/")]
    for name, size in upload.files.items():
        if not name.startswith("figures/"):
            print(f"  {_size(size):>9}  {name}")
    if figures:
        print(f"  {_size(sum(figures)):>9}  figures/ ({len(figures)} files)")
    for note in upload.notes:
        print(f"  note: {note}")
    if "encode.json" in upload.files:
        print(f"  url: {upload.url}" if upload.url else "  a data set; nothing was pushed")
        return
    print("  loads: every Auto class, in a process without this package; no weight new, none changed")
    unchecked = f"metadata not checked, no answer from {constants.ENDPOINT}"
    print(f"  card: {'the Hub accepts its metadata' if upload.card_checked else unchecked}")
    if upload.url is None:
        print("dry run: nothing was pushed")
    else:
        print("  downloaded and loaded again: every tensor is the local one")
        print(f"done: {upload.url}")


def _size(size: int) -> str:
    return f"{size} B" if size < 1000 else f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    run(main)

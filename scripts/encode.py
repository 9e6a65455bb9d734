"""Encode a corpus: a data set in, parquet shards of vectors out.

    concept-encoder encode runs/mine --dataset_name docs.jsonl \\
        --output_dir encoded --precision 2bit

CHECKPOINT is of this package or of sentence-transformers. The same command again does what is missing: after a kill,
a full disk, or when Slurm is through. Needs the extra: pip install "concept-encoder[corpus]".
"""

from pathlib import Path
from typing import Any

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run, say, suggest

PRECISIONS = ("float32", "float16", "int8", "2bit", "ubinary")


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="folder of a model, its Hub id, or box")
    parser.add_argument("--dataset_name", required=True, metavar="NAME", help="Hub id, folder, file; hf:// too")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--revision", help="commit, branch or tag of the model")
    parser.add_argument("--dataset_config_name", metavar="C", help="of a Hub id")
    parser.add_argument("--dataset_revision", metavar="R", help="of the data set")
    parser.add_argument("--split", help="of the data set (default: train)")
    parser.add_argument("--streaming", action="store_true", help="read without a download, a file a task")
    parser.add_argument("--text_column", metavar="C", help="that is encoded (default: text)")
    parser.add_argument("--id_column", help="of unique ids (default: documents are numbered)")
    parser.add_argument("--columns", nargs="*", metavar="C", help="that are kept (default: the text)")
    parser.add_argument("--concepts", action="store_true", help="all of a text, not the pooled vector")
    parser.add_argument("--precision", names=PRECISIONS, help=", ".join(PRECISIONS))
    parser.add_argument("--ranges_from", type=Path, metavar="DIR", help="of int8: take those of other shards")
    parser.add_argument("--max_length", type=int, help="tokens of a text (default: the model's limit)")
    parser.add_argument("--words", type=Path, metavar="FILE", help="of word weights, for a column of words")
    parser.add_argument("--word_entries", type=int, help="words of a document (default: 4 KiB)")
    parser.add_argument("--workers", type=int, help="processes (default: 1, which uses all cores)")
    parser.add_argument("--executor", names=("local", "ray", "slurm"), help="local, ray or slurm (default: local)")
    parser.add_argument("--executor_options", nargs="+", metavar="A=B", help="of datatrove's")
    parser.add_argument("--overwrite", action="store_true", help="encode again what is there")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    with parser.refusing():
        options = dict(map(_option, arguments.pop("executor_options", [])))
        result = ce.encode(**arguments, executor_options=options)
    folder = arguments["output_dir"]
    if result is None:
        say("Slurm has the tasks. When they are done, type the same command again.")
        return
    size = result.bytes / max(1, result.documents)
    print(f"{result.documents:,} documents, {result.empty:,} of them empty, {result.tokens:,} tokens")
    if result.documents_per_second is not None:
        print(f"{result.documents_per_second:,.1f} documents/s, {result.tokens_per_second:,.0f} tokens/s")
    print(f"{result.bytes / 2**20:,.1f} MiB, {size:,.0f} bytes a document")
    say(f"Written to {folder}.")
    given, recorded = arguments["checkpoint"], result.plan.checkpoint  # which names no path of this machine
    elsewhere = Path(given).exists() and not Path(recorded).exists()
    suggest("search", folder, "a question", *(["--checkpoint", given] if elsewhere else []))


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE; whole numbers are numbers."""
    name, is_option, value = text.partition("=")
    if not is_option:
        raise ValueError(f"executor_options must be NAME=VALUE, got {text!r}")
    return name, int(value) if value.isdecimal() else value


if __name__ == "__main__":
    run(main)

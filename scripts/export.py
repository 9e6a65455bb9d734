"""Export a checkpoint to ONNX or torch.export.

    python scripts/export.py runs/mine --output_dir runs/mine-onnx --format onnx

Writes one graph with dynamic batch size and length, configuration and tokenizer beside it, and only if it computes
what the model computes. A classifier is exported with its head, any other checkpoint as its encoder.
"""

import logging

from concept_encoder.eval.hub.export import EXPORTERS, export_checkpoint
from concept_encoder.utils.command_line import Command, run, say


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="run folder or Hub id of a concept encoder or classifier, with tokenizer")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--output_dir", required=True, help="folder to write; must not exist, or be empty")
    parser.add_argument("--format", required=True, choices=EXPORTERS, help="onnx for ONNX Runtime, pt2 for torch")
    arguments = parser.parse_args(argv)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every optional package
    with parser.refusing():
        check = export_checkpoint(arguments.checkpoint, arguments.output_dir, arguments.format, arguments.revision)
    shapes = ", ".join(f"{rows} x {columns}" for rows, columns in check["shapes"])
    print(f"largest difference to the model {check['largest_difference']:.1e} over texts x tokens {shapes}")
    say(f"{check['exported']} written to {arguments.output_dir}.")


if __name__ == "__main__":
    run(main)

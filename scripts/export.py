"""Export a checkpoint to ONNX or torch.export.

    concept-encoder export runs/mine --output_dir runs/mine-onnx --format onnx

Writes one graph with dynamic batch size and length, configuration and tokenizer next to it, and only if it computes
what the model computes. A classifier is exported with its head, any other checkpoint as its encoder.
"""

import logging

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run, say

FORMATS = ("onnx", "pt2")


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="run folder or Hub id of a concept encoder or classifier, with tokenizer")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--output_dir", required=True, help="folder to write; must not exist, or be empty")
    parser.add_argument("--format", required=True, choices=FORMATS, help="onnx for ONNX Runtime, pt2 for torch")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every optional package
    with parser.refusing():
        check = ce.export(**arguments)
    shapes = ", ".join(f"{rows} x {columns}" for rows, columns in check["shapes"])
    print(f"largest difference to the model {check['largest_difference']:.1e} over texts x tokens {shapes}")
    say(f"{check['exported']} written to {arguments['output_dir']}.")


if __name__ == "__main__":
    run(main)

"""Export a checkpoint to ONNX or torch.export: python scripts/export.py CHECKPOINT OUT --format onnx

Writes one graph with dynamic batch size and length, configuration and tokenizer beside it, and only if it computes
what the model computes. A classifier is exported with its head, any other checkpoint as its encoder.
"""

import argparse
import logging

from concept_encoder.eval.export import EXPORTERS, export_checkpoint


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("checkpoint", help="run folder or Hub id of a concept encoder or classifier, with tokenizer")
    parser.add_argument("output_dir", help="new folder for the export")
    parser.add_argument("--format", required=True, choices=EXPORTERS, help="onnx for ONNX Runtime, pt2 for torch")
    arguments = parser.parse_args(argv)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every optional package
    try:
        check = export_checkpoint(arguments.checkpoint, arguments.output_dir, arguments.format)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    shapes = ", ".join(f"{rows} x {columns}" for rows, columns in check["shapes"])
    print(f"{check['exported']} written to {arguments.output_dir}")
    print(f"largest difference to the model {check['largest_difference']:.1e} over texts x tokens {shapes}")


if __name__ == "__main__":
    main()

"""Measure the concept geometry of a checkpoint: python scripts/analyze.py CHECKPOINT

Reads the validation documents of the corpus named in CHECKPOINT/recipe.yaml, unless flags name another, writes
CHECKPOINT/geometry.json and prints the graded figures.
"""

import dataclasses
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from concept_encoder.eval.geometry import GRADES, OUTPUT_NAME, analyze
from concept_encoder.trainers.data import DataArguments


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        DataArguments,
        allow_abbrev=False,
        description=__doc__.partition("\n")[0],
        usage="%(prog)s CHECKPOINT [--num_batches N] [--batch_size N] [--output FILE] [corpus flags, see --help]",
    )
    parser.add_argument("checkpoint", help="folder of a trained model")
    parser.add_argument("--num_batches", type=int, default=20, help="batches of documents to encode (default: 20)")
    parser.add_argument("--batch_size", type=int, default=16, help="documents per batch (default: 16)")
    parser.add_argument("--output", help=f"JSON file to write (default: CHECKPOINT/{OUTPUT_NAME})")
    known, _ = parser.parse_known_args(argv)  # the checkpoint's recipe decides the defaults of the other flags
    try:
        parser.set_defaults(**_recipe_data(Path(known.checkpoint)))
        data, arguments = parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)
        output = Path(arguments.output or Path(arguments.checkpoint) / OUTPUT_NAME)
        result = analyze(arguments.checkpoint, data, arguments.num_batches, arguments.batch_size, output)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    _print_table(result)
    print(f"\nWritten to {output}. Next: python scripts/report.py {arguments.checkpoint}")


def _recipe_data(checkpoint: Path) -> dict:
    path = checkpoint / "recipe.yaml"
    if not path.is_file():
        return {}
    section = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("data") or {}
    fields = [field.name for field in dataclasses.fields(DataArguments)]
    unknown = sorted(set(section) - set(fields))
    if unknown:
        raise ValueError(
            f"{path} has unknown data fields: {', '.join(unknown)}. The known fields are: {', '.join(fields)}"
        )
    return section


def _print_table(result: dict) -> None:
    corpus = result["corpus"]["dataset_name"]
    print(
        f"\nGeometry of {result['num_concepts']} concepts of width {result['hidden_size']} over "
        f"{result['num_samples']} documents of {corpus}\n"
    )
    width = max(map(len, result["metrics"]))
    for name, value in result["metrics"].items():
        note = "  (fixed by the output LayerNorm)" if name in result["by_construction"] else ""
        print(f"  {name:<{width}}  {value:>10.4g}  {result['grades'].get(name, ''):<4}{note}")
    counts = {label: list(result["grades"].values()).count(label) for label in ("GOOD", "OK", "POOR")}
    print(f"\n{len(GRADES)} graded: " + ", ".join(f"{count} {label}" for label, count in counts.items()))


if __name__ == "__main__":
    main()

"""Score the frozen concepts of a checkpoint on similarity tasks: python scripts/similarity.py CHECKPOINT --tasks stsb

Cosines without any training and a linear probe, beside the same architecture with random weights. Writes one JSON file
per task into the folder similarity of the run.
"""

import argparse
from pathlib import Path

from concept_encoder.eval.similarity import SIMILARITY_TASKS, result_path, similarity_tasks


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("checkpoint", help="run folder or Hub id of a pretrained concept encoder")
    parser.add_argument(
        "--tasks", nargs="+", required=True, metavar="TASK", help=f"any of {', '.join(SIMILARITY_TASKS)}"
    )
    parser.add_argument("--output_dir", help="run folder to write to (default: CHECKPOINT, when it is a folder)")
    parser.add_argument("--max_length", type=int, default=128, help="tokens per sentence (default: 128)")
    parser.add_argument("--max_train_examples", type=int, help="training pairs to fit on (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    arguments = parser.parse_args(argv)
    try:
        output_dir = arguments.output_dir or arguments.checkpoint
        if not arguments.output_dir and not Path(output_dir).is_dir():
            raise ValueError(f"{arguments.checkpoint} is no folder to write results to; give --output_dir as well")
        results = similarity_tasks(
            arguments.checkpoint,
            arguments.tasks,
            output_dir,
            max_length=arguments.max_length,
            max_train_examples=arguments.max_train_examples,
            overwrite=arguments.overwrite,
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    _print_table(results)
    written = result_path(output_dir, results[0]["task"]).parent
    print(f"\nWritten to {written}. Next: python scripts/report.py {output_dir}")


def _print_table(results: list[dict]) -> None:
    print(f"\n{'task':<24}{'method':<16}{'pearson':>9}  {'95 % interval':<17}{'spearman':>9}{'untrained':>11}")
    for result in results:
        twin = result["controls"]["random_init"]
        rows = {name: (row, row, twin["zero_shot"][name]) for name, row in result["zero_shot"].items()}
        rows["probe"] = (result["probe"]["metrics"], result["probe"], twin["probe"]["metrics"])
        for name, (scores, row, untrained) in rows.items():
            low_high = row["intervals"]["pearson"]
            interval = "undefined" if low_high is None else f"{low_high[0]:.3f} to {low_high[1]:.3f}"
            numbers = f"{_number(scores['pearson'])}  {interval:<17}{_number(scores['spearman'])}"
            print(f"{result['task']:<24}{name:<16}{numbers}  {_number(untrained['pearson'])}")


def _number(value: float | None) -> str:
    return f"{'undefined' if value is None else f'{value:.3f}':>9}"


if __name__ == "__main__":
    main()

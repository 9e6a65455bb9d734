"""Measure whether more sampling steps help: python scripts/sampling_steps.py RUN [RUN ...] --output FILE.json

Fills half-masked validation texts of each run's own corpus in 1, 2, 4, 8 and 16 steps, prints the table and writes it.
"""

import argparse
from pathlib import Path

from concept_encoder.eval.sampling_steps import sampling_steps
from concept_encoder.trainers.files import write_json


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of pretraining runs")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--num_texts", type=int, default=256, help="validation texts to fill (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="of masks, orders and resamples (default: 0)")
    args = parser.parse_args(argv)
    try:
        runs = {Path(run).name: sampling_steps(run, args.num_texts, seed=args.seed) for run in args.runs}
        write_json(Path(args.output), {"kind": "sampling_steps", "runs": runs})
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"\n{'run':<20}  {'context':<7}  {'encoder':<7}  {'steps':>5}  {'recovered':<22}  bits per masked token")
    for name, run in runs.items():
        for reads, rows in run["encoder_reads"].items():
            for row in rows:
                cells = [_cell(row[measure]) for measure in ("recovered", "nll_bits")]
                head = f"{name:<20}  {run['decoder_context']:<7}  {reads:<7}  {row['num_steps']:>5}"
                print(f"{head}  {cells[0]:<22}  {cells[1]}")


def _cell(measure: dict) -> str:
    low, high = measure["interval"]
    return f"{measure['value']:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()

"""Measure whether more sampling steps help.

    python scripts/dev/sampling_steps.py runs/mine --result runs/mine/steps.json

Fills half-masked validation texts of each run's own corpus in 1, 2, 4, 8 and 16 steps, prints the table and writes it.
"""

from pathlib import Path

from concept_encoder.scripts.dev.sampling_steps_page import sampling_steps
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_json


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="folders of pretraining runs")
    parser.add_argument("--result", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--num_texts", type=int, default=256, help="validation texts to fill")
    parser.add_argument("--seed", type=int, default=0, help="of masks, orders and resamples")
    args = parser.parse_args(argv)
    with parser.refusing():
        runs = {Path(folder).name: sampling_steps(folder, args.num_texts, seed=args.seed) for folder in args.run_dirs}
        write_json(args.result, {"kind": "sampling_steps", "runs": runs})
    print(f"{'run':<20}  {'context':<7}  {'encoder':<7}  {'steps':>5}  {'recovered':<22}  bits per masked token")
    for name, measured in runs.items():
        for reads, rows in measured["encoder_reads"].items():
            for row in rows:
                cells = [_cell(row[measure]) for measure in ("recovered", "nll_bits")]
                head = f"{name:<20}  {measured['decoder_context']:<7}  {reads:<7}  {row['num_steps']:>5}"
                print(f"{head}  {cells[0]:<22}  {cells[1]}")
    say(f"Written to {args.result}.")


def _cell(measure: dict) -> str:
    low, high = measure["interval"]
    return f"{measure['value']:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    run(main)

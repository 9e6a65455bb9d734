"""Write the report of a run.

    concept-encoder report runs/mine --gate gate_1

Reads what the other commands left in RUN_DIR (pretrain.json, geometry.json, ledger.json, reading.json,
finetune/*.json, similarity/*.json; at least one of them), writes report.json, report.md, report.html and figures/
there, and prints the results in short. OTHER_RUN_DIR is laid next to it and only read.

Exit code 0, or with --gate its verdict: 0 PASS, 1 FAIL, 2 INCONCLUSIVE. Bad input exits with 2 as well, with one line
on stderr.
"""

from pathlib import Path

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run, say, suggest

GATES = ("gate_1", "strict", "microworld")


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("run_dir", type=Path, nargs="?", help="folder of a run")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="report on the reference run's figures, in DIR")
    parser.add_argument("other_run_dir", type=Path, nargs="?", help="folder of a run to lay next to it")
    parser.add_argument("--gate", choices=GATES, help="set of gates whose verdict is the exit code")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    if ("reference" in arguments) == ("run_dir" in arguments):
        parser.error("give either RUN_DIR or --reference DIR")
    folder = arguments.get("reference") or arguments["run_dir"]
    with parser.refusing():
        from concept_encoder.eval.report.gates import EXIT_CODES
        from concept_encoder.eval.report.reference_run import write_reference_run
        from concept_encoder.eval.report.report import summary_table

        if "reference" in arguments:
            write_reference_run(folder)
        report = ce.report(folder, arguments.get("other_run_dir"))
        verdicts = {row.id: row.verdict for row in report.gates}
        if arguments.get("gate") not in (None, *verdicts):
            raise ValueError(f"this run is judged by {', '.join(verdicts)}, and not by {arguments['gate']}")
    print(summary_table(report))
    say(f"\nWritten to {folder}: report.html, report.md, report.json.")
    if (folder / "model.safetensors").is_file():
        suggest("push", folder, "--repo_id", "owner/name", "--dry_run")
    if "gate" in arguments:
        raise SystemExit(EXIT_CODES[verdicts[arguments["gate"]]])


if __name__ == "__main__":
    run(main)

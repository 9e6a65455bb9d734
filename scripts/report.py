"""Write the report of a run: python scripts/report.py RUN_DIR

Reads what the other commands left in RUN_DIR (pretrain.json, geometry.json, finetune/*.json; at least one of them),
writes report.json, report.md, report.html and figures/ there, and prints the results in short.
"""

import argparse
from pathlib import Path

from concept_encoder.eval.report import summary_table, write_report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run_dir", type=Path, help="folder of a run, as given to pretrain.py as --output_dir")
    arguments = parser.parse_args(argv)
    try:
        report = write_report(arguments.run_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(summary_table(report))
    print()
    for name in ("report.html", "report.md", "report.json"):
        print(f"Written: {arguments.run_dir / name}")


if __name__ == "__main__":
    main()

"""Make a training corpus that no benchmark has leaked into: python scripts/build_corpus.py sentence_pairs runs/pairs

Joins the training rows of the sources that a plan (a name in scripts/corpora, or a path) lists, without those that
share a sentence, or nearly one, with the validation or test rows of the benchmarks it names. Train on it with
--dataset_name runs/pairs.
"""

import argparse
from pathlib import Path

from concept_encoder.eval.corpora import build_corpus, format_contamination, load_plan
from concept_encoder.trainers.recipes import find_recipe

PLANS = Path(__file__).parent / "corpora"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="build_corpus.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("plan", help="name in scripts/corpora, or path")
    parser.add_argument("output_dir", type=Path, help="folder to write; must not exist, or be empty")
    arguments = parser.parse_args(argv)
    try:
        result = build_corpus(load_plan(find_recipe(arguments.plan, PLANS)), arguments.output_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    rows = sum(row["kept"] for row in result["sources"])
    print(f"{format_contamination(result)}\n{rows:,} rows written to {arguments.output_dir}.")


if __name__ == "__main__":
    main()

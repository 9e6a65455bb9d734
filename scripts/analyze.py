"""Measure the concepts of a checkpoint.

    python scripts/analyze.py runs/mine
    python scripts/analyze.py runs/mine --dataset_name "texts/*.txt"

Reads the validation documents of the corpus named in CHECKPOINT/recipe.yaml, unless fields of the corpus follow.
Prints the figures and writes geometry.json, ledger.json (bits per token through the concepts) and reading.json (who
reads what).
"""

from concept_encoder.eval.concepts.analysis import FILES, analyze
from concept_encoder.eval.concepts.geometry import GRADES
from concept_encoder.eval.loading.checkpoints import Checkpoint, results_folder
from concept_encoder.trainers.data.corpora import DataArguments
from concept_encoder.trainers.recipes import FieldParser, read_data
from concept_encoder.utils.command_line import Command, run, say


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="folder of a trained model, or its Hub id")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--num_batches", type=int, default=20, help="batches of documents to encode")
    parser.add_argument("--batch_size", type=int, default=16, help="documents per batch")
    parser.add_argument("--ledger_documents", type=int, default=128, help="documents of those to keep the ledger on")
    parser.add_argument("--output_dir", help="folder to write into (default: CHECKPOINT)")
    fields = FieldParser(DataArguments, prog=parser.prog)
    parser.accept(fields)
    args = parser.parse_args(argv)
    with parser.refusing():
        folder = results_folder(args.checkpoint, args.output_dir)
        checkpoint = Checkpoint.open(args.checkpoint, args.revision)
        data = read_data(args.overrides, fields, checkpoint.folder)
        result = analyze(checkpoint, data, args.num_batches, args.batch_size, args.ledger_documents, folder)
    _print_geometry(result["geometry"])
    _print_spectrum(result["geometry"]["spectrum"])
    if "ledger" in result:
        _print_ledger(result["ledger"])
    else:
        print(
            f"\n{args.checkpoint} holds no decoder of masked diffusion: no ledger, and of the reading the encoder's "
            "side only."
        )
    say(f"\nWritten to {folder}: {', '.join(FILES[name] for name in result)}.")
    parser.suggest("report.py", folder)


def _print_geometry(result: dict) -> None:
    corpus = result["corpus"]["dataset_name"]
    print(
        f"Geometry of {result['num_concepts']} concepts of width {result['hidden_size']} over "
        f"{result['num_samples']} documents of {corpus}\n"
    )
    fixed = result["by_construction"]
    width = max(map(len, result["metrics"]))
    for name, value in result["metrics"].items():
        note = "fixed by the output LayerNorm" if name in fixed else result["grades"].get(name, "")
        print(f"  {name:<{width}}  {value:>10.4g}  {note}".rstrip())
    graded = [label for name, label in result["grades"].items() if name not in fixed]
    counts = ", ".join(f"{graded.count(label)} {label}" for label in ("GOOD", "OK", "POOR"))
    print(f"\n{len(graded)} of the reference's {len(GRADES)} grades are not fixed by construction: {counts}")


def _print_spectrum(spectrum: dict) -> None:
    nulls = list(spectrum["content_share"]["nulls"])
    print(f"\n{'Standard figures':<34}  {'value':>9}  {'95 % interval':<20}" + "".join(f"{n:>16}" for n in nulls))
    rows = {f"{view} {name}": row for view, table in spectrum["views"].items() for name, row in table.items()}
    for name, row in {**rows, "content_share": spectrum["content_share"]}.items():
        low, high = row["interval"]
        beside = "".join(
            f"{'-' if row['nulls'][null] is None else format(row['nulls'][null], '.4g'):>16}" for null in nulls
        )
        print(f"  {name:<32}  {row['value']:>9.4g}  {f'{low:.4g} to {high:.4g}':<20}{beside}")


def _print_ledger(ledger: dict) -> None:
    print(
        f"\nBits per token through the concepts, over {ledger['tokens']} tokens of {ledger['num_documents']} documents"
    )
    for name, figure in ledger["bits_per_token"].items():
        low, high = figure["interval"]
        print(f"  against {name + ' concepts':<18}  {figure['value']:>8.4f}  ({low:.4f} to {high:.4f})")
    count = ledger["concepts_for_90_percent"]
    if count is None:
        print("  no single concept is missed when it is left out")
    else:
        print(f"  {count} of {len(ledger['leave_one_out'])} concepts carry 90 % of what is lost by leaving one out")


if __name__ == "__main__":
    run(main)

"""Measure the concepts of a checkpoint.

    concept-encoder analyze runs/mine
    concept-encoder analyze runs/mine --dataset_name "texts/*.txt"

Reads the validation documents of the corpus named in CHECKPOINT/recipe.yaml, unless fields of the corpus follow.
Prints the figures and writes geometry.json, ledger.json (bits per token through the concepts) and reading.json (who
reads what).
"""

import concept_encoder as ce
from concept_encoder.utils.command_line import RECIPE_FIELDS, Command, run, say, suggest


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="folder of a trained model, or its Hub id")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--num_batches", type=int, help="batches of documents to encode (default: 20)")
    parser.add_argument("--batch_size", type=int, help="documents per batch (default: 16)")
    text = "documents of those to keep the ledger on (default: 128)"
    parser.add_argument("--ledger_documents", type=int, help=text)
    parser.add_argument("--output_dir", help="folder to write into (default: CHECKPOINT)")
    parser.accept(RECIPE_FIELDS, ["data"])
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    checkpoint = arguments["checkpoint"]
    with parser.refusing():
        from concept_encoder.eval.concepts.analysis import FILES

        result = ce.analyze(**arguments, **parser.fields())
    _print_geometry(result["geometry"])
    _print_spectrum(result["geometry"]["spectrum"])
    if "ledger" in result:
        _print_ledger(result["ledger"])
    else:
        print(
            f"\n{checkpoint} holds no decoder of masked diffusion: no ledger, and of the reading the encoder's "
            "side only."
        )
    folder = arguments.get("output_dir", checkpoint)
    say(f"\nWritten to {folder}: {', '.join(FILES[name] for name in result)}.")
    suggest("report", folder)


def _print_geometry(result: dict) -> None:
    from concept_encoder.eval.concepts.geometry import GRADES

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

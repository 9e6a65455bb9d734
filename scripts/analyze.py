"""Measure the concepts of a checkpoint.

    concept-encoder analyze runs/mine
    concept-encoder analyze runs/mine --dataset_name "texts/*.txt"

Reads the validation documents of the corpus named in CHECKPOINT/recipe.yaml, unless fields of the corpus follow.
Prints the figures and writes geometry.json, ledger.json (bits per token through the concepts) and reading.json (who
reads what).
"""

from typing import TYPE_CHECKING

import concept_encoder as ce
from concept_encoder.utils.command_line import RECIPE_FIELDS, Command, run, say, suggest

if TYPE_CHECKING:
    from concept_encoder.utils.results import GeometryResult, LedgerResult, Spectrum


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
        result = ce.analyze(**arguments, **parser.fields())
    _print_geometry(result.geometry)
    if result.geometry.spectrum is not None:
        _print_spectrum(result.geometry.spectrum)
    if result.ledger is not None:
        _print_ledger(result.ledger)
    else:
        print(
            f"\n{checkpoint} holds no decoder of masked diffusion: no ledger, and of the reading the encoder's "
            "side only."
        )
    folder = arguments.get("output_dir", checkpoint)
    say(f"\nWritten to {folder}: {', '.join(result.files)}.")
    suggest("report", folder)


def _print_geometry(result: "GeometryResult") -> None:
    from concept_encoder.eval.concepts.geometry import GRADES

    print(
        f"Geometry of {result.num_concepts} concepts of width {result.hidden_size} over "
        f"{result.num_samples} documents of {result.corpus and result.corpus.dataset_name}\n"
    )
    fixed = result.by_construction
    width = max(map(len, result.metrics))
    for name, value in result.metrics.items():
        note = "fixed by the output LayerNorm" if name in fixed else result.grades.get(name, "")
        print(f"  {name:<{width}}  {value:>10.4g}  {note}".rstrip())
    graded = [label for name, label in result.grades.items() if name not in fixed]
    counts = ", ".join(f"{graded.count(label)} {label}" for label in ("GOOD", "OK", "POOR"))
    print(f"\n{len(graded)} of the reference's {len(GRADES)} grades are not fixed by construction: {counts}")


def _print_spectrum(spectrum: "Spectrum") -> None:
    rows = {f"{view} {name}": row for view, table in spectrum.views.items() for name, row in table.items()}
    if spectrum.content_share is not None:
        rows["content_share"] = spectrum.content_share
    nulls = "".join(f"{name:>16}" for name in ("gaussian", "random_encoder", "static_slots"))
    print(f"\n{'Standard figures':<34}  {'value':>9}  {'95 % interval':<20}{nulls}")
    for name, row in rows.items():
        low_high = "" if row.interval is None else f"{row.interval[0]:.4g} to {row.interval[1]:.4g}"
        beside = "".join(f"{'-' if value is None else format(value, '.4g'):>16}" for value in vars(row.nulls).values())
        print(f"  {name:<32}  {row.value:>9.4g}  {low_high:<20}{beside}")


def _print_ledger(ledger: "LedgerResult") -> None:
    print(f"\nBits per token through the concepts, over {ledger.tokens} tokens of {ledger.num_documents} documents")
    for name, figure in vars(ledger.bits_per_token).items():
        low, high = figure.interval
        print(f"  against {name + ' concepts':<18}  {figure.value:>8.4f}  ({low:.4f} to {high:.4f})")
    count = ledger.concepts_for_90_percent
    if count is None:
        print("  no single concept is missed when it is left out")
    else:
        print(f"  {count} of {len(ledger.leave_one_out)} concepts carry 90 % of what is lost by leaving one out")


if __name__ == "__main__":
    run(main)

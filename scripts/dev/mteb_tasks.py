"""Sizes and chance levels of mteb's tasks, from the statistics in its package, for `judge` to judge results by.

    python scripts/dev/mteb_tasks.py unpacked/mteb/descriptive_stats

FOLDER is in the wheel of mteb, unpacked. Tasks of one test set in one language: of grades, of classes and of pairs.
"""

import json
from pathlib import Path
from typing import Any

from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically

FILE = Path(__file__).resolve().parents[2] / "eval" / "judging" / "mteb_tasks.json"
# Kind -> metric that its tasks are scored by, what is known without a text, and its chance of counts of labels
KINDS = {
    "STS": ("cosine_spearman", "constant prediction", lambda _: 0.0),
    "Classification": ("accuracy", "most frequent class", lambda counts: max(counts.values()) / sum(counts.values())),
    "PairClassification": ("max_ap", "share of positive pairs", lambda counts: counts["1"] / sum(counts.values())),
}


def tasks(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> `examples` of the test split, `metric`, `chance` and the `rule` of it."""
    found = {}
    for kind, (metric, rule, chance) in KINDS.items():
        for path in sorted((folder / kind).glob("*.json")):
            test = json.loads(path.read_text(encoding="utf-8")).get("test", {})
            labels = (test.get("label_statistics") or test.get("labels_statistics") or {}).get("labels", {})
            counts = {label: row["count"] for label, row in labels.items()}
            if not test or "hf_subset_descriptive_stats" in test or (kind != "STS" and len(counts) < 2):
                continue
            if kind == "PairClassification" and set(counts) != {"0", "1"}:
                continue
            known = {"examples": test["num_samples"], "metric": metric, "chance": round(chance(counts), 6)}
            found[path.stem] = {**known, "rule": rule}
    return found


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("folder", type=Path, help="of statistics")
    with parser.refusing():
        folder = parser.parse_args(argv).folder
        found = tasks(folder)
        if not found:
            raise ValueError(f"{folder} holds no statistics of a task of {', '.join(KINDS)}")
        rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
        write_atomically(FILE, f"{{\n{rows}\n}}\n".encode())
    say(f"{FILE}: {len(found)} tasks.")


if __name__ == "__main__":
    run(main)

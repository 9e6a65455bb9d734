"""The reference run as a run folder, so that its own figures can be put before the gates and into a report."""

import json
from pathlib import Path
from typing import Any

from ...utils.files import write_json
from ..concepts.geometry import grade
from .report import read_reference
from .sections import PARTS


def write_reference_run(output_dir: str | Path) -> None:
    """Write the figures reported for the reference run as pretrain.json, geometry.json and finetune/*.json.

    Only what was reported is written: no logs, no spectrum, no ledger.

    Args:
        output_dir: folder to fill; made if it does not exist.

    Raises:
        ValueError: the folder holds results of another run.
    """
    folder = Path(output_dir)
    reference = read_reference()
    run = reference["runs"][0]
    files = {"pretrain.json": _pretrain(run), "geometry.json": _geometry(run)}
    for task, metrics in run["downstream"].items():
        facts = reference["fine_tuning"][task]
        files[f"finetune/{task}.reference.json"] = _finetune(task, metrics, facts)
    for path in (path for part in PARTS.values() for path in folder.glob(part.pattern)):
        name = path.relative_to(folder).as_posix()
        if name not in files or json.loads(path.read_text(encoding="utf-8")) != files[name]:
            raise ValueError(
                f"{str(output_dir)!r} holds another run's {name}; give a new folder for the reference run"
            )
    (folder / "finetune").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_json(folder / name, content)


def _pretrain(run: dict[str, Any]) -> dict[str, Any]:
    training = run["training"]
    return {
        "kind": "pretrain",
        "recipe": run["id"],
        "model": run["model"],
        "data": {name: training[name] for name in ("dataset_name", "tokenizer_name", "max_length")},
        "objective": {name: training[name] for name in ("t_min", "t_max", "label_smoothing")},
        "training": training,
        "parameters": {},
        "steps": 39_000,
        "epochs": training["num_train_epochs"],
        **{name: training[name] for name in ("train_loss", "eval_loss", "grad_norm_peak", "grad_norm_final")},
        "steps_per_second": training["steps_per_second"],
        "evaluation": {},
    }


def _geometry(run: dict[str, Any]) -> dict[str, Any]:
    num_concepts, hidden_size = run["model"]["num_concepts"], run["model"]["hidden_size"]
    return {
        "kind": "geometry",
        "corpus": {"dataset_name": run["training"]["dataset_name"]},
        "num_samples": run["geometry_samples"],
        "num_concepts": num_concepts,
        "hidden_size": hidden_size,
        "metrics": run["geometry"],
        "grades": grade(run["geometry"], num_concepts, hidden_size),
        "singular_values": run["singular_values"],
    }


def _finetune(task: str, metrics: dict[str, float], facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "finetune",
        "task": task,
        "protocol": "reference",
        "split": "validation",
        "metrics": metrics,
        "primary_metric": next(iter(metrics)),
        **{name: facts[name] for name in ("chance", "chance_rule", "validation_examples")},
        **{name: facts[name] for name in ("epochs", "learning_rate", "batch_size")},
    }

"""The sections of a report, each from the content of the result files of its part of the run."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .findings import score_row


class Part(NamedTuple):
    """A part of a run: where its files lie, the keys they must have, the command that writes them."""

    kind: str
    pattern: str
    required: tuple[str, ...]
    absent: str
    command: str


PARTS = {
    "training": Part(
        "pretrain",
        "pretrain.json",
        ("recipe", "model", "data", "objective", "training", "parameters", "steps", "train_loss", "evaluation"),
        "This folder holds no record of pretraining.",
        "concept-encoder pretrain scripts/recipes/RECIPE.yaml --output_dir RUN_DIR",
    ),
    "geometry": Part(
        "geometry",
        "geometry.json",
        ("num_concepts", "hidden_size", "metrics", "grades"),
        "The concepts of this run have not been analysed.",
        "concept-encoder analyze RUN_DIR",
    ),
    "ledger": Part(
        "ledger",
        "ledger.json",
        ("bits_per_token", "by_timestep", "by_position", "leave_one_out"),
        "How many bits the decoder takes through the concepts has not been measured; of the decoders, only that of "
        "masked diffusion has a ledger.",
        "concept-encoder analyze RUN_DIR",
    ),
    "reading": Part(
        "reading",
        "reading.json",
        ("concepts",),
        "What each concept reads, and who reads it, has not been recorded.",
        "concept-encoder analyze RUN_DIR",
    ),
    "downstream": Part(
        "finetune",
        "finetune/*.json",
        ("task", "protocol", "metrics", "primary_metric", "chance", "chance_rule"),
        "This run has not been fine-tuned on any task.",
        "concept-encoder finetune RUN_DIR --protocol tuned --tasks mrpc stsb paws sick_relatedness sick_entailment",
    ),
    "similarity": Part(
        "similarity",
        "similarity/*.json",
        ("task",),
        "The frozen concepts have not been scored, neither by cosine nor by a linear probe.",
        "concept-encoder similarity RUN_DIR --tasks stsb sick_relatedness",
    ),
}

GROUPS = {
    "collapse": (
        "global_effective_rank",
        "global_effective_rank_normalized",
        "effective_rank",
        "effective_rank_normalized",
        "dimensions_for_95_variance",
        "top_1_variance_ratio",
        "top_5_variance_ratio",
        "top_1_dominance_ratio",
    ),
    "diversity": (
        "mean_concept_similarity",
        "std_concept_similarity",
        "max_concept_similarity",
        "uniformity_loss",
    ),
    "dimensions": (
        "participation_ratio",
        "participation_ratio_normalized",
        "mean_dimension_std",
        "min_dimension_std",
        "max_dimension_std",
        "isotropy",
        "collapsed_dimensions",
        "collapsed_dimensions_ratio",
        "mean_concept_norm",
        "std_concept_norm",
        "min_concept_norm",
        "max_concept_norm",
    ),
}
# What the output LayerNorm fixes; not graded, whatever the reference's scale says.
_NORM = "The output LayerNorm sets norms near √D."
_DEAD = "Behind the output LayerNorm a dimension collapses only when all concept vectors agree in it; 0 says little."
BY_CONSTRUCTION = {
    "isotropy": "The output LayerNorm takes one direction away, so the covariance is singular.",
    "collapsed_dimensions": _DEAD,
    "collapsed_dimensions_ratio": _DEAD,
    **dict.fromkeys(("mean_concept_norm", "std_concept_norm", "min_concept_norm", "max_concept_norm"), _NORM),
}
NOTES = {
    **BY_CONSTRUCTION,
    "global_effective_rank": "Σσ/σ₁ of the uncentred mean over documents: the template, not what texts differ by. "
    "Gaussian noise of 128 x 512 scores 83. Not RankMe.",
    "effective_rank": "The same, of each batch's mean.",
    "mean_concept_similarity": "Of absolute cosines.",
    "uniformity_loss": "Without the logarithm of the paper.",
    "max_concept_similarity": "Mean over batches of the most similar pair of any document.",
}
IGNORED = "The bits cannot be told from 0, so how they divide over timesteps, positions and concepts means nothing."
CHOSEN_CONCEPTS = 6  # shown over the example text
SETTINGS_OF_A_SCORE = (
    "split",
    "train_examples",
    "validation_examples",
    "epochs",
    "learning_rate",
    "batch_size",
    "seed",
)


def settings(training: Mapping[str, Any] | None, geometry: Mapping[str, Any] | None) -> dict[str, Any]:
    """What decides whether a run is like another; None where the folder does not say."""
    model = training["model"] if training else {}
    data = training["data"] if training else {}
    sizes = geometry or model
    tokenizer = data.get("tokenizer_name")
    if tokenizer is None and data.get("dataset_name") == "microworld":
        tokenizer = "microworld"
    return {
        "dataset_name": data.get("dataset_name"),
        "tokenizer_name": tokenizer,
        "max_length": data.get("max_length"),
        "num_concepts": sizes.get("num_concepts"),
        "hidden_size": sizes.get("hidden_size"),
        "num_hidden_layers": model.get("num_hidden_layers"),
        "decoder_context": model.get("decoder_context"),
    }


# ----------------------------------------------------------------------------------------------------------- training


def training_section(run: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, outcome and learning curves of pretrain.json."""
    evaluation, history = run["evaluation"], run.get("log_history", [])
    series = ("loss", "eval_loss", "eval_nelbo_bits_per_token", "learning_rate", "grad_norm")
    curves = {name: [[row["step"], row[name]] for row in history if name in row and "step" in row] for name in series}
    return {
        "recipe": run["recipe"],
        "settings": _training_settings(run),
        "outcome": {
            "training loss, first": run["train_loss"][0],
            "training loss, last": run["train_loss"][1],
            "evaluation loss, first": run.get("eval_loss", [None, None])[0],
            "evaluation loss, last": run.get("eval_loss", [None, None])[1],
            "conditional NELBO, bits per token": evaluation.get("nelbo_bits_per_token"),
            **_own_task(evaluation.get("rebuilding")),
            "gradient norm, peak": run.get("grad_norm_peak"),
            "gradient norm, final": run.get("grad_norm_final"),
            "steps per second": run.get("steps_per_second"),
            "training time": _duration(run.get("train_seconds")),
            "tokens seen": run.get("tokens_seen"),
        },
        "nelbo_bits_per_token": evaluation.get("nelbo_bits_per_token"),
        "by_timestep": evaluation.get("by_timestep", []),
        "curves": {name: points for name, points in curves.items() if points},
        "objective": run["objective"],
        "environment": run.get("environment", {}),
    }


def _own_task(rebuilding: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if rebuilding is None else {"its own task, bits per rebuilt token": rebuilding["bits_per_token"]}


def _training_settings(run: Mapping[str, Any]) -> dict[str, Any]:
    model, data, parameters, training = run["model"], run["data"], run["parameters"], run["training"]
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
    batch = math.prod(training[name] for name in names) if all(name in training for name in names) else None
    return {
        "recipe": run["recipe"],
        "corpus": data.get("dataset_name"),
        "tokens per text": data.get("max_length"),
        "concepts C": model.get("num_concepts"),
        "hidden size D": model.get("hidden_size"),
        "encoder layers": model.get("num_hidden_layers"),
        "decoder layers": model.get("decoder_num_hidden_layers"),
        "decoder context": model.get("decoder_context"),
        "parameters, whole model": parameters.get("total"),
        "parameters, encoder": parameters.get("encoder"),
        "steps": run["steps"],
        "epochs": run.get("epochs"),
        "texts per step": batch,
        "learning rate": training.get("learning_rate"),
        "schedule": training.get("lr_scheduler_type"),
        "warm-up steps": training.get("warmup_steps"),
        "seed": training.get("seed"),
    }


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


# ----------------------------------------------------------------------------------------------------------- geometry


def geometry_section(run: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's metrics with their grades, the spectrum against its nulls, and what the figures draw.

    `gaussian_singular_values` are those of standard normal noise of the same (C, D), the null of `singular_values`.
    """
    corpus = run.get("corpus", {})
    noise = np.random.default_rng(0).standard_normal((run["num_concepts"], run["hidden_size"]))
    return {
        "corpus": corpus.get("dataset_name") if isinstance(corpus, dict) else corpus,
        "num_samples": run.get("num_samples"),
        "num_batches": run.get("num_batches"),
        "num_concepts": run["num_concepts"],
        "hidden_size": run["hidden_size"],
        "metrics": _graded_metrics(run),
        "spectrum": run.get("spectrum"),
        "singular_values": run.get("singular_values") or [],
        "gaussian_singular_values": np.linalg.svd(noise, compute_uv=False).round(3).tolist(),
        "reference_singular_values": reference["runs"][0]["singular_values"],
        "dimension_std": run.get("dimension_std") or [],
        "reference_dimension_std": {
            name: reference["runs"][0]["geometry"][name]
            for name in ("min_dimension_std", "mean_dimension_std", "max_dimension_std")
        },
        "similarity_matrix": run.get("similarity_matrix") or [],
    }


def _graded_metrics(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    order = {name: number for number, name in enumerate(group_of)}
    intervals = run.get("intervals", {})
    by_construction = set(BY_CONSTRUCTION) | set(run.get("by_construction", []))
    names = sorted(
        (name for name, value in run["metrics"].items() if value is None or isinstance(value, int | float)),
        key=lambda name: order.get(name, len(order)),
    )
    return [
        {
            "id": name,
            "group": group_of.get(name, "other"),
            "value": run["metrics"][name],
            "interval": intervals.get(name),
            "grade": run["grades"].get(name),
            "by_construction": name in by_construction,
            "note": NOTES.get(name),
        }
        for name in names
    ]


# -------------------------------------------------------------------------------------------------- ledger and reading


def ledger_section(run: Mapping[str, Any]) -> dict[str, Any]:
    """ledger.json with the differences taken: bits per token that the true concepts save, by timestep and position."""
    interval = (run["bits_per_token"].get("null") or {}).get("interval")
    return {
        "num_documents": run.get("num_documents"),
        "tokens": run.get("tokens"),
        "bits_per_token": run["bits_per_token"],
        "by_timestep": [
            {
                **row,
                "bits_shuffled": _difference(row["shuffled_nll_bits"], row["true_nll_bits"]),
                "bits_null": _difference(row["null_nll_bits"], row["true_nll_bits"]),
            }
            for row in run["by_timestep"]
        ],
        "by_position": run["by_position"],
        "leave_one_out": run["leave_one_out"],
        "concepts_for_90_percent": run.get("concepts_for_90_percent"),
        "note": IGNORED if interval and interval[0] <= 0 else None,
    }


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def reading_section(run: Mapping[str, Any]) -> dict[str, Any]:
    """reading.json, concepts in the order of how much the decoder reads them, and the few to show over the example.

    `uniform` is the row of a concept that reads every token alike.

    `chosen` holds {"index", "tokens": [[token, attention share], ...]} of the example, for the most-read concepts.
    """
    # A share that was not measured goes last.
    concepts = sorted(run["concepts"], key=lambda row: (row["share_read"] is None, -(row["share_read"] or 0)))
    example = run.get("example")
    chosen = []
    if example:
        for row in concepts[:CHOSEN_CONCEPTS]:
            weights = example["encoder_weights"][row["index"]]
            pairs = [list(pair) for pair in zip(example["tokens"], weights, strict=True)]
            chosen.append({"index": row["index"], "tokens": pairs})
    return {"concepts": concepts, "uniform": run.get("uniform"), "example": example, "chosen": chosen}


# --------------------------------------------------------------------------------------------------------- downstream


def task_section(run: Mapping[str, Any]) -> dict[str, Any]:
    """One task under one protocol: every score beside chance, the controls and what others published."""
    examples = run.get("validation_examples")
    # The primary metric first: it is what the verdict of the row is about.
    names = sorted(run["metrics"], key=lambda name: name != run["primary_metric"])
    scores = []
    for name in names:
        score = score_row(
            name,
            run["metrics"][name],
            run["chance"].get(name),
            examples,
            run.get("intervals", {}).get(name),
            run.get("at_chance", {}).get(name),
        )
        score["controls"] = {
            control: _control_row(facts, name) for control, facts in (run.get("controls") or {}).items()
        }
        score["per_seed"] = [row["metrics"].get(name) for row in run.get("per_seed", [])]
        scores.append(score)
    return {
        "id": f"{run['task']}.{run['protocol']}",
        "task": run["task"],
        "protocol": run["protocol"],
        "primary_metric": run["primary_metric"],
        "verdict": scores[0]["verdict"],
        "chance_rule": run["chance_rule"],
        "scores": scores,
        **{name: run.get(name) for name in SETTINGS_OF_A_SCORE},
        **(run.get("selected") or {}),
        "seeds": run.get("seeds") or ([] if run.get("seed") is None else [run["seed"]]),
        "sweep": run.get("sweep", []),
        "controls": {name: facts.get("description") for name, facts in (run.get("controls") or {}).items()},
        "published": run.get("published", []),
        "head": run.get("head"),
    }


def _control_row(control: Mapping[str, Any], metric: str) -> dict[str, Any]:
    paired = (control.get("paired") or {}).get(metric) or {}
    return {
        "value": control["metrics"].get(metric),
        "interval": (control.get("intervals") or {}).get(metric),
        "difference": paired.get("difference"),
        "difference_interval": paired.get("interval"),
        "p_value": paired.get("p_value"),
    }


def similarity_section(run: Mapping[str, Any]) -> dict[str, Any]:
    """One task without fine-tuning: each method and metric, this run beside its random-initialised twin."""
    twin = _frozen_scores((run.get("controls") or {}).get("random_init") or {})
    rows = [
        {
            "id": f"{method}, {metric}",
            "method": method,
            "metric": metric,
            **{name: figure[name] for name in ("value", "interval")},
            "random_init": twin.get((method, metric)),
        }
        for (method, metric), figure in _frozen_scores(run).items()
    ]
    return {"id": run["task"], "probe_protocol": (run.get("probe") or {}).get("protocol"), "rows": rows}


def _frozen_scores(facts: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(method, metric) -> value, interval and paired difference, of zero-shot methods and of the probe."""
    figures = {}
    for name, row in (facts.get("zero_shot") or {}).items():
        scores = {key: value for key, value in row.items() if key not in ("description", "intervals", "paired")}
        for metric in scores:
            figures[f"cosine, {name.replace('_', ' ')}", metric] = _control_row({**row, "metrics": scores}, metric)
    probe = facts.get("probe") or {"metrics": {}}
    for metric in probe["metrics"]:
        figures["linear probe", metric] = _control_row(probe, metric)
    return figures

"""Result files of a run that was never trained, as the commands write them, for the tests of the report."""

import json
from pathlib import Path

import numpy as np

from concept_encoder.eval.report.report import read_reference

REFERENCE = read_reference()
TOKENS = "[CLS] the $red fox$ gave anna a coin yesterday . [SEP]".split()


def synthetic_pretrain(steps: int = 600, corpus: str = "microworld") -> dict:
    """A plausible pretrain.json: the loss falls from ln 400 to 0.9 nats."""
    random = np.random.default_rng(0)
    history = []
    for step in range(0, steps + 1, 20):
        share = step / steps
        loss = 0.9 + 5.09 * np.exp(-5 * share) + 0.04 * random.normal()
        norm = 0.3 + 4 * np.exp(-12 * share) + 0.05 * random.random()
        rate = 1e-3 * min(step / 60, (1 + np.cos(np.pi * share)) / 2)
        history.append({"step": step, "epoch": 3 * share, "loss": loss, "grad_norm": norm, "learning_rate": rate})
        if step % 100 == 0:
            bits = 1.2 + 7.4 * np.exp(-5 * share)
            history.append({"step": step, "eval_loss": bits * np.log(2), "eval_nelbo_bits_per_token": bits})
    grid = [(k + 0.5) / 10 for k in range(10)]
    timesteps = [
        {"timestep": t, "nll_bits": 0.9 + 0.8 * t**2, "accuracy": 0.83 - 0.2 * t**2, "tokens": round(9000 * t)}
        for t in grid
    ]
    model = {"vocab_size": 400, "hidden_size": 64, "num_hidden_layers": 2, "num_concepts": 16}
    return {
        "kind": "pretrain",
        "recipe": "microworld",
        "model": {**model, "decoder_num_hidden_layers": 2, "decoder_context": "latent"},
        "data": {"dataset_name": corpus, "tokenizer_name": None, "max_length": 64},
        "objective": {"weighting": "elbo", "t_min": 0.0, "t_max": 1.0, "label_smoothing": 0.0},
        "training": {
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 60,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 1,
            "world_size": 1,
            "num_train_epochs": 3,
            "max_steps": -1,
            "seed": 0,
            "bf16": False,
        },
        "parameters": {"total": 412_345, "encoder": 201_234, "trainable": 412_345},
        "steps": steps,
        "epochs": 3.0,
        "train_seconds": 171.4,
        "steps_per_second": 3.5,
        "tokens_seen": 1_843_200,
        "train_loss": [history[0]["loss"], 0.93],
        "eval_loss": [5.96, 0.87],
        "grad_norm_peak": 4.33,
        "grad_norm_final": 0.32,
        "log_history": history,
        "evaluation": {"nelbo_bits_per_token": 1.25, "by_timestep": timesteps},
        "environment": {"torch": "2.13.0", "transformers": "5.23.0", "device": "cpu"},
    }


def synthetic_geometry(concepts: int = 16, width: int = 64, corpus: str = "microworld") -> dict:
    """A plausible geometry.json: concepts in four families."""
    random = np.random.default_rng(1)
    families = random.normal(size=(4, width))
    vectors = families[random.integers(4, size=concepts)] + 0.8 * random.normal(size=(concepts, width))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    values = np.linalg.svd(vectors, compute_uv=False)
    rank = float(values.sum() / values[0])
    bound = min(concepts, width)
    metrics = dict.fromkeys(REFERENCE["runs"][0]["geometry"], 0.5)
    metrics.update(global_effective_rank=rank, global_effective_rank_normalized=rank / bound, isotropy=1.1e-9)
    metrics.update(max_concept_similarity=0.97, mean_concept_norm=8.0)
    return {
        "kind": "geometry",
        "checkpoint": "runs/sample",
        "corpus": {"dataset_name": corpus},
        "num_samples": 320,
        "batch_size": 16,
        "num_batches": 20,
        "num_concepts": concepts,
        "hidden_size": width,
        "metrics": metrics,
        "grades": {
            "global_effective_rank_normalized": "OK",
            "max_concept_similarity": "POOR",
            "mean_concept_similarity": "GOOD",
            "isotropy": "POOR",
        },
        "singular_values": values.tolist(),
        "dimension_std": (0.8 + 0.1 * random.normal(size=width)).tolist(),
        "similarity_matrix": (unit @ unit.T).round(3).tolist(),
    }


def synthetic_finetune(
    task: str,
    metrics: dict,
    chance: dict,
    examples: int,
    protocol: str = "reference",
    rule: str = "majority class",
    epochs: int = 10,
) -> dict:
    return {
        "kind": "finetune",
        "task": task,
        "protocol": protocol,
        "split": "validation",
        "metrics": metrics,
        "primary_metric": next(iter(metrics)),
        "chance": chance,
        "chance_rule": rule,
        "train_examples": 4000,
        "validation_examples": examples,
        "epochs": epochs,
        "learning_rate": 1e-5,
        "batch_size": 96,
        "seed": 0,
        "seconds": 12.5,
        "head": "ConceptEncoderForSequenceClassificationPerceiver",
        "newly_initialized": ["classifier.weight", "classifier.bias"],
        "dropped": [],
        "log_history": [],
    }


def synthetic_spectrum(shift: float = 0.0) -> dict:
    """The "spectrum" of geometry.json: within-text ranks far below noise, a template that is most of the variance."""
    figures = {"rankme": (9.0, 14.6), "participation_ratio": (5.5, 12.7), "energy_rank": (11.0, 14.0)}
    figures |= {"isoscore": (0.08, 0.19), "uniformity": (-1.9, -3.7), "duplicate_pairs": (0.02, 0.0)}
    views = {}
    for view, scale in (("template", 0.5), ("within_raw", 0.6), ("within_centred", 0.9), ("across", 0.75)):
        rows = {}
        for name, (value, gaussian) in figures.items():
            middle = scale * value + shift
            half = 0.04 * abs(middle) + 0.01
            nulls = {"gaussian": gaussian, "random_encoder": 0.6 * middle, "static_slots": 0.4 * value}
            if view == "across":
                nulls["static_slots"] = None
            interval = None if view == "template" else [middle - half, middle + half]
            rows[name] = {"value": middle, "interval": interval, "nulls": nulls, "by_construction": False}
        views[view] = rows
    views["template"]["isoscore"]["by_construction"] = True
    nulls = {"gaussian": 0.94, "random_encoder": 0.11, "static_slots": 0.0}
    share = {"value": 0.31, "interval": [0.29, 0.33], "nulls": nulls, "by_construction": False}
    return {"views": views, "content_share": share, "num_documents": 320}


def synthetic_ledger(concepts: int = 16, bits: float = 0.84) -> dict:
    """A plausible ledger.json: the decoder reads the concepts, more at high t, a few of them most."""
    random = np.random.default_rng(2)
    grid = [(k + 0.5) / 10 for k in range(10)]
    timesteps = [
        {
            "timestep": t,
            "true_nll_bits": 1.1 + 0.9 * t,
            "shuffled_nll_bits": 1.1 + 0.9 * t + bits * (0.4 + 2.4 * t),
            "null_nll_bits": 1.1 + 0.9 * t + bits * (0.3 + 1.4 * t),
            "tokens": round(9000 * t),
        }
        for t in grid
    ]
    positions = [
        {"from": start, "to": start + 7, "bits_null": bits * (1.3 - start / 64), "tokens": 4000 - 50 * start}
        for start in range(0, 64, 8)
    ]
    return {
        "kind": "ledger",
        "corpus": {"dataset_name": "microworld"},
        "num_documents": 320,
        "tokens": 14_250,
        "bits_per_token": {
            "shuffled": {"value": 1.6 * bits, "interval": None},
            "null": {"value": bits, "interval": [bits - 0.05, bits + 0.05]},
        },
        "by_timestep": timesteps,
        "by_position": positions,
        "leave_one_out": np.sort(random.gamma(0.6, 0.06, size=concepts)).round(4).tolist(),
        "concepts_for_90_percent": 9,
    }


def synthetic_reading(concepts: int = 16) -> dict:
    """A plausible reading.json."""
    random = np.random.default_rng(3)
    encoder = random.dirichlet(np.full(len(TOKENS), 0.2), size=concepts)
    decoder = random.dirichlet(np.full(concepts, 0.3), size=len(TOKENS))
    words = [*TOKENS[1:-1], "kitchen", "|", "<b>", "gave"]
    rows = [
        {
            "index": index,
            "entropy_bits": float(random.uniform(0.5, 3.2)),
            "top_tokens": [[word, 0.3 / n] for n, word in enumerate(random.permutation(words).tolist(), start=1)][:10],
            "mean_position": float(random.uniform(2, 40)),
            "read_by_entropy_bits": float(random.uniform(3, 5)),
            "share_read": float(share),
        }
        for index, share in enumerate(random.dirichlet(np.full(concepts, 0.8)))
    ]
    uniform = {"entropy_bits": 3.46, "top_tokens": [["the", 0.1]], "mean_position": 20.0, "share_read": None}
    example = {
        "tokens": TOKENS,
        "encoder_weights": encoder.round(4).tolist(),
        "decoder_weights": decoder.round(4).tolist(),
    }
    return {"kind": "reading", "concepts": rows, "uniform": uniform, "example": example}


def with_controls(run: dict, twin: float, bag: float, half: float = 0.03) -> dict:
    """A finetune JSON with what the protocol `tuned` adds; `twin` and `bag` are what the run adds to each control."""
    metrics = run["metrics"]

    def control(words: str, difference: float) -> dict:
        scores = {name: value - difference for name, value in metrics.items()}
        return {
            "description": words,
            "metrics": scores,
            "intervals": {name: [value - half, value + half] for name, value in scores.items()},
            "paired": {
                name: {"difference": difference, "interval": [difference - half, difference + half], "p_value": 0.012}
                for name in metrics
            },
        }

    rates = [(rate, batch) for rate in (3e-5, 1e-4, 3e-4, 1e-3) for batch in (16, 32)]
    return {
        **run,
        "seeds": [0, 1, 2],
        "per_seed": [{"seed": seed, "metrics": metrics} for seed in range(3)],
        "intervals": {name: [value - half, value + half] for name, value in metrics.items()},
        "at_chance": {name: value - half <= run["chance"][name] for name, value in metrics.items()},
        "at_chance_words": "",
        "selected": {"learning_rate": 3e-4, "batch_size": 32, "epochs": 6},
        "sweep": [
            {"learning_rate": rate, "batch_size": batch, "epochs": 6, "metrics": metrics} for rate, batch in rates
        ],
        "controls": {
            "bag_of_tokens": control("TF-IDF of both texts, linear model", bag),
            "random_init": control("the same architecture with other weights", twin),
        },
        "published": [
            {
                "model": "BERT-Tiny",
                "metric": run["primary_metric"],
                "score": 0.74,
                "split": "validation",
                "parameters": 4_400_000,
                "source": "Turc et al. 2019",
                "note": "",
                "comparable": True,
            },
            {
                "model": "GloVe mean",
                "metric": run["primary_metric"],
                "score": 0.58,
                "split": "test",
                "parameters": None,
                "source": "somebody",
                "note": "another split",
                "comparable": False,
            },
        ],
    }


def synthetic_similarity(task: str = "microworld_similarity") -> dict:
    """A plausible similarity/<task>.json: whitening helps, the twin is far behind."""

    def judged(value: float) -> dict:
        return {"intervals": {"pearson": [value - 0.05, value + 0.05], "spearman": None}}

    def zero_shot(value: float, paired: dict) -> dict:
        extras = {"mean": 0.0, "weighted": 0.01, "max_sim": 0.05, "mean_whitened": 0.1}
        return {
            name: {"description": f"{name} in words", "pearson": value + extra, "spearman": None}
            | judged(value + extra)
            | paired
            for name, extra in extras.items()
        }

    def probe(value: float) -> dict:
        return {"metrics": {"pearson": value}, **judged(value), "alpha": 10.0}

    paired = {"paired": {"pearson": {"difference": 0.13, "interval": [0.1, 0.16], "p_value": 0.0002}}}
    return {
        "kind": "similarity",
        "task": task,
        "zero_shot": zero_shot(0.33, {}),
        "probe": {**probe(0.48), "protocol": "[|a-b|; a*b] + ridge"},
        "controls": {"random_init": {"zero_shot": zero_shot(0.2, paired), "probe": {**probe(0.35), **paired}}},
    }


def write_run(folder: Path, **parts: dict | list[dict] | None) -> Path:
    """A run folder with the parts given: one pretrain, geometry, ledger, reading; lists of finetune and similarity."""
    files = {f"{name}.json": parts.get(name) for name in ("pretrain", "geometry", "ledger", "reading")}
    files |= {f"finetune/{run['task']}.{run['protocol']}.json": run for run in parts.get("finetune") or []}
    files |= {f"similarity/{run['task']}.json": run for run in parts.get("similarity") or []}
    for name, content in files.items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    return folder


def write_synthetic_run(folder: Path, corpus: str = "microworld", bits: float = 0.84) -> Path:
    """A run folder with every part; `bits` is what its decoder takes through the concepts."""
    similarity = synthetic_finetune(
        "microworld_similarity", {"pearson": 0.61, "spearman": 0.58}, {"pearson": 0.0, "spearman": 0.0}, 1000
    )
    paraphrase = synthetic_finetune(
        "microworld_paraphrase", {"accuracy": 0.53, "f1": 0.64}, {"accuracy": 0.51, "f1": 0.67}, 1000
    )
    entailment = synthetic_finetune("microworld_entailment", {"accuracy": 0.71}, {"accuracy": 0.345}, 1000)
    tuned = [with_controls({**similarity, "protocol": "tuned"}, 0.12, 0.02)]
    tuned.append(with_controls({**paraphrase, "protocol": "tuned"}, 0.01, -0.09))
    return write_run(
        folder,
        pretrain=synthetic_pretrain(corpus=corpus),
        geometry={**synthetic_geometry(corpus=corpus), "spectrum": synthetic_spectrum(bits)},
        ledger=synthetic_ledger(bits=bits),
        reading=synthetic_reading(),
        finetune=[similarity, paraphrase, entailment, *tuned],
        similarity=[synthetic_similarity()],
    )

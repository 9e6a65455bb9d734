"""Result files of a run that was never trained, as the commands write them, for the tests of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from concept_encoder.eval.concepts.geometry import BY_CONSTRUCTION
from concept_encoder.eval.metrics.chance import judge
from concept_encoder.eval.report.findings import read_reference
from concept_encoder.utils.results import (
    AttentionResult,
    BitsPerToken,
    ConceptReading,
    ControlFacts,
    ControlScore,
    DataFacts,
    Environment,
    Evaluation,
    Example,
    Figure,
    FinetuneResult,
    FrozenScore,
    GeometryResult,
    LedgerPositions,
    LedgerResult,
    LedgerTimestep,
    ModelFacts,
    Nulls,
    Parameters,
    PretrainResult,
    Published,
    RankerRow,
    Reading,
    Result,
    RetrievalResult,
    Setting,
    SimilarityResult,
    SizeScore,
    Spectrum,
    SpectrumFigure,
    SweepRow,
    TimestepLoss,
    TrainingFacts,
    facts,
)

REFERENCE = read_reference()
TOKENS = "[CLS] the $red fox$ gave anna a coin yesterday . [SEP]".split()


def synthetic_pretrain(steps: int = 600, corpus: str = "microworld") -> PretrainResult:
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
        TimestepLoss(timestep=t, nll_bits=0.9 + 0.8 * t**2, accuracy=0.83 - 0.2 * t**2, tokens=round(9000 * t))
        for t in grid
    ]
    model = {"vocab_size": 400, "hidden_size": 64, "num_hidden_layers": 2, "num_concepts": 16}
    unknown = dict.fromkeys(each.name for each in fields(TrainingFacts))
    training = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 60, "texts_per_step": 64}
    return PretrainResult(
        recipe="microworld",
        model=facts(ModelFacts, {**model, "decoder_num_hidden_layers": 2, "decoder_context": "latent"}),
        data=corpus_facts(corpus, 64),
        objective={"weighting": "elbo", "t_min": 0.0, "t_max": 1.0, "label_smoothing": 0.0},
        training=TrainingFacts(**{**unknown, **training, "num_train_epochs": 3, "max_steps": -1, "seed": 0}),
        parameters=Parameters(total=412_345, encoder=201_234, trainable=412_345),
        steps=steps,
        epochs=3.0,
        train_seconds=171.4,
        steps_per_second=3.5,
        tokens_seen=1_843_200,
        data_wait_share=0.01,
        train_loss=(history[0]["loss"], 0.93),
        eval_loss=(5.96, 0.87),
        grad_norm_peak=4.33,
        grad_norm_final=0.32,
        log_history=history,
        evaluation=Evaluation(nelbo_bits_per_token=1.25, rebuilding=None, by_timestep=timesteps),
        environment=Environment(
            torch="2.13.0", transformers="5.23.0", python="3.11.7", device="cpu", processes=1, threads=2
        ),
    )


def corpus_facts(name: str = "microworld", max_length: int | None = None) -> DataFacts:
    return DataFacts(dataset_name=name, tokenizer_name=None, max_length=max_length, more={})


def synthetic_geometry(concepts: int = 16, width: int = 64, corpus: str = "microworld") -> GeometryResult:
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
    return GeometryResult(
        checkpoint="runs/sample",
        corpus=corpus_facts(corpus),
        num_samples=320,
        batch_size=16,
        num_batches=20,
        num_concepts=concepts,
        hidden_size=width,
        metrics=metrics,
        grades={
            "global_effective_rank_normalized": "OK",
            "max_concept_similarity": "POOR",
            "mean_concept_similarity": "GOOD",
            "isotropy": "POOR",
        },
        by_construction=list(BY_CONSTRUCTION),
        singular_values=values.tolist(),
        dimension_std=(0.8 + 0.1 * random.normal(size=width)).tolist(),
        similarity_matrix=(unit @ unit.T).round(3).tolist(),
        spectrum=None,
    )


def synthetic_finetune(
    task: str,
    metrics: Mapping[str, float | None],
    chance: Mapping[str, float],
    examples: int,
    protocol: str = "reference",
    rule: str = "majority class",
    epochs: int = 10,
) -> FinetuneResult:
    """A plausible finetune/<task>.<protocol>.json without controls."""
    return FinetuneResult(
        task=task,
        protocol=protocol,
        split="validation",
        primary_metric=next(iter(metrics)),
        greater_is_better=True,
        scores={name: judge(name, value, chance.get(name), examples=examples) for name, value in metrics.items()},
        chance_rule=rule,
        train_examples=4000,
        validation_examples=examples,
        settings={},
        selected=Setting(learning_rate=1e-5, batch_size=96, epochs=epochs),
        scheduled_epochs=epochs,
        seeds=[0],
        max_length=64,
        steps=1000,
        padding_share=0.1,
        seconds=12.5,
        dataset={},
        head="ConceptEncoderForSequenceClassificationPerceiver",
        newly_initialized=["classifier.weight", "classifier.bias"],
        dropped=[],
        environment=None,
        controls={},
        sweep=[],
        published=[],
        log_history=[],
    )


def synthetic_spectrum(shift: float = 0.0) -> Spectrum:
    """The `spectrum` of a geometry: within-text ranks far below noise, a template that is most of the variance."""
    figures = {"rankme": (9.0, 14.6), "participation_ratio": (5.5, 12.7), "energy_rank": (11.0, 14.0)}
    figures |= {"isoscore": (0.08, 0.19), "uniformity": (-1.9, -3.7), "duplicate_pairs": (0.02, 0.0)}
    views = {}
    for view, scale in (("template", 0.5), ("within_raw", 0.6), ("within_centred", 0.9), ("across", 0.75)):
        rows = {}
        for name, (value, gaussian) in figures.items():
            middle = scale * value + shift
            half = 0.04 * abs(middle) + 0.01
            slots = None if view == "across" else 0.4 * value
            rows[name] = SpectrumFigure(
                value=middle,
                interval=None if view == "template" else (middle - half, middle + half),
                nulls=Nulls(gaussian=gaussian, random_encoder=0.6 * middle, static_slots=slots),
                by_construction=(view, name) == ("template", "isoscore"),
            )
        views[view] = rows
    share = SpectrumFigure(
        value=0.31,
        interval=(0.29, 0.33),
        nulls=Nulls(gaussian=0.94, random_encoder=0.11, static_slots=0.0),
        by_construction=False,
    )
    return Spectrum(views=views, content_share=share, num_documents=320, num_resamples=200)


def synthetic_ledger(concepts: int = 16, bits: float = 0.84) -> LedgerResult:
    """A plausible ledger.json: the decoder reads the concepts, more at high t, a few of them most."""
    random = np.random.default_rng(2)
    grid = [(k + 0.5) / 10 for k in range(10)]
    timesteps = [
        LedgerTimestep(
            timestep=t,
            true_nll_bits=1.1 + 0.9 * t,
            shuffled_nll_bits=1.1 + 0.9 * t + bits * (0.4 + 2.4 * t),
            null_nll_bits=1.1 + 0.9 * t + bits * (0.3 + 1.4 * t),
            tokens=round(9000 * t),
        )
        for t in grid
    ]
    positions = [
        LedgerPositions(first=start, last=start + 7, bits_null=bits * (1.3 - start / 64), tokens=4000 - 50 * start)
        for start in range(0, 64, 8)
    ]
    return LedgerResult(
        checkpoint="runs/sample",
        corpus=corpus_facts(),
        num_documents=320,
        tokens=14_250,
        bits_per_token=BitsPerToken(
            shuffled=Figure(value=1.6 * bits, interval=None),
            null=Figure(value=bits, interval=(bits - 0.05, bits + 0.05)),
        ),
        by_timestep=timesteps,
        by_position=positions,
        leave_one_out=np.sort(random.gamma(0.6, 0.06, size=concepts)).round(4).tolist(),
        leave_one_out_documents=32,
        concepts_for_90_percent=9,
    )


def synthetic_reading(concepts: int = 16) -> AttentionResult:
    """A plausible reading.json."""
    random = np.random.default_rng(3)
    encoder = random.dirichlet(np.full(len(TOKENS), 0.2), size=concepts)
    decoder = random.dirichlet(np.full(concepts, 0.3), size=len(TOKENS))
    words = [*TOKENS[1:-1], "kitchen", "|", "<b>", "gave"]
    rows = [
        ConceptReading(
            index=index,
            entropy_bits=float(random.uniform(0.5, 3.2)),
            top_tokens=[(word, 0.3 / n) for n, word in enumerate(random.permutation(words).tolist(), start=1)][:10],
            special_share=0.1,
            mean_position=float(random.uniform(2, 40)),
            read_by_entropy_bits=float(random.uniform(3, 5)),
            share_read=float(share),
        )
        for index, share in enumerate(random.dirichlet(np.full(concepts, 0.8)))
    ]
    return AttentionResult(
        checkpoint="runs/sample",
        corpus=corpus_facts(),
        num_documents=320,
        special_tokens=["[CLS]", "[SEP]"],
        concepts=rows,
        uniform=Reading(
            entropy_bits=3.46,
            top_tokens=[("the", 0.1)],
            special_share=None,
            mean_position=20.0,
            share_read=None,
            read_by_entropy_bits=None,
        ),
        example=Example(
            tokens=TOKENS,
            encoder_weights=encoder.round(4).tolist(),
            decoder_weights=decoder.round(4).tolist(),
        ),
    )


def with_controls(run: FinetuneResult, twin: float, bag: float, half: float = 0.03) -> FinetuneResult:
    """What the protocol `tuned` adds; `twin` and `bag` are what the run adds to each control."""

    def control(value: float | None, difference: float) -> ControlScore:
        score = None if value is None else value - difference
        return ControlScore(
            value=score,
            interval=None if score is None else (score - half, score + half),
            difference=None if value is None else difference,
            difference_interval=None if value is None else (difference - half, difference + half),
            p_value=None if value is None else 0.012,
        )

    rates = [(rate, batch) for rate in (3e-5, 1e-4, 3e-4, 1e-3) for batch in (16, 32)]
    selected = Setting(learning_rate=3e-4, batch_size=32, epochs=6)
    values = {name: score.value for name, score in run.scores.items()}
    scores = {
        name: judge(
            name,
            score.value,
            score.chance,
            interval=None if score.value is None else (score.value - half, score.value + half),
            controls={"bag_of_tokens": control(score.value, bag), "random_init": control(score.value, twin)},
            per_seed=[score.value] * 3,
        )
        for name, score in run.scores.items()
    }
    return replace(
        run,
        scores=scores,
        seeds=[0, 1, 2],
        selected=selected,
        sweep=[SweepRow(learning_rate=rate, batch_size=batch, epochs=6, metrics=values) for rate, batch in rates],
        controls={
            "bag_of_tokens": ControlFacts(description="TF-IDF, linear model", selected=None, sweep=[]),
            "random_init": ControlFacts(description="other weights", selected=selected, sweep=[]),
        },
        published=[
            Published(
                model="BERT-Tiny",
                metric=run.primary_metric,
                score=0.74,
                split="validation",
                parameters=4_400_000,
                source="Turc et al. 2019",
                note="",
                comparable=True,
            ),
            Published(
                model="GloVe mean",
                metric=run.primary_metric,
                score=0.58,
                split="test",
                parameters=None,
                source="somebody",
                note="another split",
                comparable=False,
            ),
        ],
    )


def synthetic_similarity(task: str = "microworld_similarity") -> SimilarityResult:
    """A plausible similarity/<task>.json: whitening helps, the twin is far behind."""
    own = {"cosine, mean": 0.33, "cosine, weighted": 0.34, "cosine, max sim": 0.38, "cosine, mean whitened": 0.43}
    rows = []
    for method, value in {**own, "linear probe": 0.48}.items():
        twin = ControlScore(
            value=value - 0.13,
            interval=(value - 0.18, value - 0.08),
            difference=0.13,
            difference_interval=(0.1, 0.16),
            p_value=0.0002,
        )
        interval = (value - 0.05, value + 0.05)
        rows.append(FrozenScore(method=method, metric="pearson", value=value, interval=interval, random_init=twin))
        unknown = ControlScore(value=None, interval=None, difference=None, difference_interval=None, p_value=None)
        rows.append(FrozenScore(method=method, metric="spearman", value=None, interval=None, random_init=unknown))
    return SimilarityResult(
        task=task,
        split="validation",
        primary_metric="pearson",
        train_examples=4000,
        validation_examples=1000,
        max_length=64,
        weights="0123456789abcdef",
        methods={**{method: f"{method} in words" for method in own}, "linear probe": "[|a-b|; a*b] + ridge"},
        alpha=10.0,
        alpha_of_twin=1.0,
        rows=rows,
        sizes=[SizeScore(num_concepts=4, dim=8, bytes=128, seconds=0.01, value=0.5, interval=(0.4, 0.6))],
    )


def synthetic_retrieval(task: str = "needle_1024") -> RetrievalResult:
    """A plausible retrieval/<task>.json: BM25 at chance, the twin too."""
    rows = []
    for ranker, value in {"run": 0.62, "random_init": 0.08, "bm25": 0.09, "words_pairs_4096": 0.07}.items():
        interval, less = (value - 0.05, value + 0.05), None if ranker == "run" else 0.62 - value
        score = ControlScore(
            value=value,
            interval=interval,
            difference=less,
            difference_interval=None if less is None else (less - 0.06, less + 0.06),
            p_value=None if less is None else 0.0002,
        )
        rows.append(
            RankerRow(
                ranker=ranker,
                description=f"{ranker} in words",
                scores={"ndcg_at_10": score, "mrr_at_10": replace(score, value=value - 0.02)},
                bytes_per_text=None if ranker == "bm25" else 4096,
                seconds=0.5,
            )
        )
    return RetrievalResult(
        task=task,
        split="test",
        primary_metric="ndcg_at_10",
        documents=50,
        queries=50,
        words_per_document=990.5,
        longest_document=1024,
        settings={"weights": "0123456789abcdef", "words": "fedcba9876543210", "max_length": None, "compare": []},
        chance={"ndcg_at_10": 0.0909, "mrr_at_10": 0.0586},
        verdict="above chance",
        weight=None,
        rows=rows,
        environment=None,
    )


def write_run(
    folder: Path,
    *,
    pretrain: PretrainResult | None = None,
    geometry: GeometryResult | None = None,
    ledger: LedgerResult | None = None,
    reading: AttentionResult | None = None,
    finetune: Sequence[FinetuneResult] = (),
    similarity: Sequence[SimilarityResult] = (),
    retrieval: Sequence[RetrievalResult] = (),
) -> Path:
    """A run folder with the results given."""
    files: dict[str, Result | None] = {
        "pretrain.json": pretrain,
        "geometry.json": geometry,
        "ledger.json": ledger,
        "reading.json": reading,
    }
    files |= {f"finetune/{run.task}.{run.protocol}.json": run for run in finetune}
    files |= {f"similarity/{run.task}.json": run for run in similarity}
    files |= {f"retrieval/{run.task}.json": run for run in retrieval}
    for name, result in files.items():
        if result is not None:
            result.save(folder / name)
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
    tuned = [with_controls(replace(similarity, protocol="tuned"), 0.12, 0.02)]
    tuned.append(with_controls(replace(paraphrase, protocol="tuned"), 0.01, -0.09))
    return write_run(
        folder,
        pretrain=synthetic_pretrain(corpus=corpus),
        geometry=replace(synthetic_geometry(corpus=corpus), spectrum=synthetic_spectrum(bits)),
        ledger=synthetic_ledger(bits=bits),
        reading=synthetic_reading(),
        finetune=[similarity, paraphrase, entailment, *tuned],
        similarity=[synthetic_similarity()],
        retrieval=[synthetic_retrieval()],
    )

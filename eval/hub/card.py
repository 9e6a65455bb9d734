"""The model card: report in, README.md out, by huggingface_hub's ModelCard and the template in model_cards/."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ...utils.results import (
    ControlScore,
    FinetuneResult,
    FrozenScore,
    PretrainResult,
    RankMetric,
    Report,
    RetrievalResult,
    SimilarityResult,
    TaskScore,
    names_of,
)
from ..benchmarks.registry import BENCHMARKS
from ..benchmarks.retrieval_tasks import RETRIEVAL_TASKS
from ..concepts.monitor import COLLAPSED_SHARE
from ..metrics.chance import CONTROLS
from ..report.blocks import number, score, span
from ..report.findings import settings
from ..report.pages import blocks_as_markdown, code_span, escape_markdown
from ..report.sections import (
    corpus_words,
    duration,
    frozen_table,
    gate_verdicts,
    retrieval_blocks,
    score_blocks,
    training_tables,
)

TEMPLATE = Path(__file__).parents[2] / "model_cards" / "template.md"
CLASSIFIER, DIFFUSION = "ForSequenceClassification", "ForDiffusionMLM"  # in the names of model classes
TAGS = ("concept-encoder", "perceiver", "sentence-transformers")
# The owner of corpora that exist on one machine only; the Hub would show a broken link.
UNPUBLISHED = "local/"
CITATION = """@software{concept_encoder,
  title = {concept-encoder: text encoders that compress tokens into concept vectors},
  author = {The concept-encoder authors},
  version = {0.1.0}
}"""
UNMEASURED = "**Not judged.** Nothing about these weights has been measured: no score, no gate, no geometry."
COLLAPSED = "**The concepts have collapsed:**"
REPEATING = "**Concepts repeat one another:**"
OPENINGS = {
    "PASS": "**Passed.** This model meets every gate that was set for it.",
    "FAIL": "**Failed.** This model does not meet the gates that were set for it. It is published so that the result "
    "can be checked, not to be used.",
    "INCONCLUSIVE": "**Not decided.** What was measured is not enough to say whether this model meets the gates that "
    "were set for it.",
}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says and no report knows."""

    repo_id: str
    """owner/name on the Hub"""
    config: Mapping[str, Any]
    """content of config.json, or as much of it as is known"""
    license: str = "apache-2.0"
    """identifier of the Hub"""
    language: str = "en"
    """ISO 639-1 code"""
    base_model: str | None = None
    """Hub id of the checkpoint that was fine-tuned"""
    task_id: str | None = None
    """<task>.<protocol> of the report whose head these weights are; None for a pretraining checkpoint"""
    note: str | None = None
    """a sentence under the verdict"""

    @property
    def architecture(self) -> str:
        return (self.config.get("architectures") or [""])[0]


def render_card(report: Report | None, facts: CardFacts) -> ModelCard:
    """Card of a checkpoint: the verdict first, then how to use it, limits, scores and training.

    Args:
        report: of the run, or None when nothing was measured.
        facts: what the report does not know.

    Raises:
        ValueError: the report has no row `facts.task_id`.
    """
    tasks = [] if report is None else _tasks(report, facts.task_id)
    own = None if facts.task_id is not None else report  # of fine-tuned weights the run's frozen scores say nothing
    frozen, retrieval = (own.similarity, own.retrieval) if own else ([], [])
    training = report.training if report else None
    return ModelCard.from_template(
        _metadata(report, tasks, frozen, retrieval, facts),
        template_path=str(TEMPLATE),
        title=facts.repo_id.split("/")[-1],
        repo_id=facts.repo_id,
        verdict=_verdict(report, tasks, facts),
        description=_description(facts),
        usage=_usage(facts),
        limits=_limits(report, tasks, facts),
        findings_title="What was found" if facts.task_id is None else "What was found of the run",
        findings=[_text(line) for line in (report.verdict.findings if report else ["Nothing was measured."])],
        gates=blocks_as_markdown(gate_verdicts(report.gates)) if report else "",
        scores=blocks_as_markdown(score_blocks(tasks)) if tasks else "",
        frozen=blocks_as_markdown([frozen_table(frozen)]) if frozen else "",
        retrieval=blocks_as_markdown(retrieval_blocks(retrieval)) if retrieval else "",
        training=blocks_as_markdown(training_tables(training)) if training else "",
        training_words=_training_words(training),
        hardware=_hardware(training),
        citation=CITATION,
    )


def render_cards(results: Path) -> dict[str, str]:
    """Cards of the reports <name>.report.json in a folder: name -> text."""
    cards = {}
    for path in sorted(results.glob("*.report.json")):
        name, report = path.name.removesuffix(".report.json"), Report.load(path)
        config = {**settings(report), "architectures": ["ConceptEncoderForDiffusionMLM"]}
        cards[name] = str(render_card(report, CardFacts(repo_id=f"concept-encoder/{name}", config=config)))
    return cards


def _tasks(report: Report, task_id: str | None) -> list[FinetuneResult]:
    if task_id is None:
        return report.downstream
    tasks = [task for task in report.downstream if task.id == task_id]
    if not tasks:
        known = ", ".join(task.id for task in report.downstream) or "none"
        raise ValueError(
            f"the report has no score of {task_id}, only of: {known}; write it again with concept-encoder report"
        )
    return tasks


def _text(value: Any) -> str:
    return escape_markdown(value)


# ----------------------------------------------------------------------------------------------------------- metadata


def _metadata(
    report: Report | None,
    tasks: list[FinetuneResult],
    frozen: list[SimilarityResult],
    retrieval: list[RetrievalResult],
    facts: CardFacts,
) -> ModelCardData:
    classifier = CLASSIFIER in facts.architecture
    name = facts.repo_id.split("/")[-1]
    results = [result for task in tasks for result in _fine_tuned(task)]
    results += [result for task in frozen for result in _frozen(task)]
    results += [result for task in retrieval for result in _searched(task)]
    return ModelCardData(
        language=facts.language,
        license=facts.license,
        library_name="transformers",
        pipeline_tag="text-classification" if classifier else "feature-extraction",
        tags=[*TAGS, *(["masked-diffusion"] if DIFFUSION in facts.architecture else [])],
        datasets=_datasets(report, facts) or None,
        base_model=facts.base_model,
        base_model_relation="finetune" if facts.base_model else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _datasets(report: Report | None, facts: CardFacts) -> list[str]:
    """Hub ids of what was trained on: the corpus, and the task's data for a fine-tuned model."""
    names = [report and report.training and report.training.data.dataset_name]
    if facts.task_id is not None:
        names.append(_dataset(facts.task_id.partition(".")[0])[0])
    hub_id = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
    return [name for name in names if name and hub_id.fullmatch(name) and not name.startswith(UNPUBLISHED)]


def _dataset(task: str) -> tuple[str, str | None]:
    row = BENCHMARKS.get(task)
    if row is not None:
        return row.dataset_id, row.validation_config or row.config
    return (RETRIEVAL_TASKS[task].dataset_id if task in RETRIEVAL_TASKS else task), None


def _eval_result(
    task: str, row: TaskScore | FrozenScore | ControlScore, metric: str, how: str, **args: Any
) -> EvalResult:
    """One score. The model index groups by data, so how it was made is said of each metric, and so is its interval."""
    dataset, config = _dataset(task)
    regression = task in BENCHMARKS and BENCHMARKS[task].problem_type == "regression"
    words = "" if row.interval is None else f", 95 % interval {span(row.interval)}"
    if row.interval is not None:
        args |= {"confidence_level": 0.95, "interval": [round(end, 4) for end in row.interval]}
    assert row.value is not None  # else it is not indexed
    searched = metric in names_of(RankMetric)
    return EvalResult(
        task_type="text-retrieval" if searched else "sentence-similarity" if regression else "text-classification",
        task_name=task,
        dataset_type=dataset,
        dataset_name=task,
        dataset_config=config,
        dataset_split=args.pop("split", "validation"),
        metric_type=metric,
        metric_name=f"{metric}, {how}{words}",
        metric_value=round(row.value, 4),
        metric_args={"how": how, **args},
    )


def _fine_tuned(task: FinetuneResult) -> list[EvalResult]:
    how = f"fine-tuned, protocol {task.protocol}"
    results = []
    for metric, row in task.scores.items():
        if row.value is not None:
            args = {} if row.chance is None else {"chance": round(row.chance, 4)}
            results.append(_eval_result(task.task, row, metric, how, **args, split=task.split))
    return results


def _frozen(task: SimilarityResult) -> list[EvalResult]:
    return [
        _eval_result(task.task, row, row.metric, f"not fine-tuned, {row.method}")
        for row in task.rows
        if row.value is not None
    ]


def _searched(task: RetrievalResult) -> list[EvalResult]:
    how = "not fine-tuned, exact search"
    return [
        _eval_result(task.task, row, metric, how, chance=round(task.chance[metric], 4), split=task.split)
        for metric, row in task.rows[0].scores.items()
        if row.value is not None
    ]


# -------------------------------------------------------------------------------------------------------------- words


def _verdict(report: Report | None, tasks: list[FinetuneResult], facts: CardFacts) -> list[str]:
    """Paragraphs, the one that a reader must not miss first."""
    note = [] if facts.note is None else [facts.note]
    if report is None:
        return [UNMEASURED, *note]
    overall, headline = report.verdict.overall, _text(report.verdict.headline)
    if facts.task_id is not None:
        judged = (
            f"The gates judge the checkpoint that was fine-tuned, and their verdict on it is {overall}: {headline}"
        )
        return [_task_words(tasks[0]), *note, judged]
    return [OPENINGS[overall], *_collapse(report), *note, headline]


def _task_words(task: FinetuneResult) -> str:
    """The primary metric against everything that it is to be compared with."""
    row = task.primary
    others = {"chance": row.chance}
    others |= {CONTROLS[name]: control.value for name, control in row.controls.items()}
    beside = "; ".join(f"{name} {score(value)}" for name, value in others.items() if value is not None)
    interval = "" if row.interval is None else f" ({span(row.interval)})"
    verdict = f"**{row.verdict[0].upper()}{row.verdict[1:]}.**"
    return f"{verdict} On {_text(task.task)}: {_text(task.primary_metric)} {score(row.value)}{interval}; {beside}."


def _collapse(report: Report) -> list[str]:
    """Said when a gate on a rank failed; by RankMe where it was measured, else by the reference's effective rank."""
    failed = [row for gate in report.gates for row in gate.rows if row.verdict == "FAIL"]
    geometry = report.geometry
    if not geometry or not any("rank" in row.metric for row in failed):
        return []
    vectors = f"the {geometry.num_concepts} vectors of a text span about"
    rank = geometry.spectrum.views.get("within_raw", {}).get("rankme") if geometry.spectrum else None
    if rank is None or rank.value is None or rank.nulls.gaussian is None:
        most = min(geometry.num_concepts, geometry.hidden_size)
        value = number(geometry.metrics.get("global_effective_rank"), 3)
        return [f"{COLLAPSED} {vectors} {value} directions (global effective rank, of at most {most})."]
    noise = rank.nulls.gaussian
    opening = COLLAPSED if rank.value < COLLAPSED_SHARE * noise else REPEATING
    return [f"{opening} {vectors} {number(rank.value, 3)} directions (RankMe), noise {number(noise, 3)}."]


def _description(facts: CardFacts) -> str:
    concepts, width = facts.config.get("num_concepts"), facts.config.get("hidden_size")
    size = "a few learned concept vectors" if concepts is None else f"{concepts} concept vectors of width {width}"
    text = f"A text encoder that compresses a text into {size} by cross-attention"
    if facts.task_id is not None:
        return f"{text}, fine-tuned on {_text(facts.task_id.partition('.')[0])}."
    if DIFFUSION in facts.architecture:
        return f"{text}, pretrained by masked diffusion: a decoder has to rebuild the text through them."
    return f"{text}."


def _limits(report: Report | None, tasks: list[FinetuneResult], facts: CardFacts) -> list[str]:
    known, lines = {**facts.config, **(settings(report) if report else {})}, []
    if known.get("dataset_name") == "microworld":
        lines.append(
            "Trained on *microworld*, generated stories in a miniature English of a few hundred words. It shows that "
            "the method runs; it knows no real text, and its scores say nothing about English."
        )
    longest = facts.config.get("max_position_embeddings")
    if known.get("max_length") is not None:
        lines.append(
            f"Trained on texts of up to {_text(known['max_length'])} tokens; nothing is known beyond that length."
        )
    elif longest is not None:
        lines.append(f"Reads texts of up to {longest} tokens.")
    if known.get("decoder_context") == "none" and DIFFUSION in facts.architecture:
        lines.append(
            "The decoder sees no other token, only the concepts: it is an autoencoder, its loss a conditional bound "
            "and not a language model's perplexity, and it does not write new text."
        )
    if facts.task_id is not None and len(tasks[0].seeds) > 1:
        lines.append("The scores are means over seeds; these weights are those of the first seed.")
    if any(len(task.seeds) == 1 for task in tasks):
        lines.append("Scores of a single seed: the intervals cover the choice of examples, not that of the seed.")
    lines.append("Not examined for bias, toxicity or memorised text.")
    return lines


def _usage(facts: CardFacts) -> dict[str, Any]:
    classifier = CLASSIFIER in facts.architecture
    row = BENCHMARKS.get((facts.task_id or "").partition(".")[0])
    pair = classifier and row is not None and len(row.sentence_columns) == 2
    labels = facts.config.get("id2label") or {}
    one, two = '"A cat sleeps."', '"A cat is asleep."'
    return {
        "auto_class": "AutoModelForSequenceClassification" if classifier else "AutoModel",
        "classifier": classifier,
        "generates": DIFFUSION in facts.architecture,
        "inputs": f"[{one}, {one}], [{two}, {two}]" if pair else f"[{one}, {two}]",
        "pipeline_input": f'{{"text": {one}, "text_pair": {two}}}' if pair else one,
        "num_labels": len(labels) or 2,
        "num_concepts": facts.config.get("num_concepts", "C"),
        "hidden_size": facts.config.get("hidden_size", "D"),
        **_pooled(facts.config),
    }


def _pooled(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the pooled output is: `pooled`, in words, and `pooled_size`, its numbers."""
    kind = config.get("pooled_output", "mean")
    numbers = config.get("projection_size") or config.get("hidden_size", "D")
    if kind == "concat":
        whole = numbers * config["num_concepts"] if isinstance(numbers, int) else "C d"
        return {"pooled": "concepts, one after the other", "pooled_size": whole}
    words = {"mean": "mean of the concepts", "weighted": "weighted mean of the concepts"}
    return {"pooled": words[kind], "pooled_size": numbers}


def _training_words(run: PretrainResult | None) -> str:
    if run is None:
        return ""
    return (
        f"Recipe {code_span(run.recipe)} of the package concept-encoder, on the corpus "
        f"{_text(corpus_words(run.data.dataset_name))}: {number(run.steps)} steps, {number(run.tokens_seen)} tokens."
    )


def _hardware(run: PretrainResult | None) -> str:
    environment = run and run.environment
    if run is None or not environment or not environment.device:
        return "not recorded"
    on_cpu, threads, processes = environment.device == "cpu", environment.threads, environment.processes
    parts = ["a CPU" if on_cpu else _text(environment.device)]
    if on_cpu and threads:
        parts.append(f"{threads} thread{'s' if threads > 1 else ''}")
    if processes and processes > 1:
        parts.append(f"{processes} processes")
    if run.train_seconds:
        parts.append(f"{duration(run.train_seconds)} of pretraining")
    return ", ".join(parts)

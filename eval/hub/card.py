"""The model card: report JSON in, README.md out, by huggingface_hub's ModelCard and the template in model_cards/."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..benchmarks.registry import BENCHMARKS
from ..concepts.monitor import COLLAPSED_SHARE
from ..report.pages import code_span, escape_markdown, number, score

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
BESIDE = {"random_init": "the same from random weights", "bag_of_tokens": "a linear model on word counts"}
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


def render_card(report: Mapping[str, Any] | None, facts: CardFacts) -> ModelCard:
    """Card of a checkpoint: the verdict first, then how to use it, limits, scores and training.

    Args:
        report: content of report.json, or None when nothing was measured.
        facts: what the report does not know.

    Raises:
        ValueError: the report has no row `facts.task_id`.
    """
    report = _empty_report() if report is None else _of_task(report, facts.task_id)
    return ModelCard.from_template(
        _metadata(report, facts),
        template_path=str(TEMPLATE),
        title=facts.repo_id.split("/")[-1],
        repo_id=facts.repo_id,
        verdict=_verdict(report, facts),
        description=_description(report, facts),
        usage=_usage(facts),
        limits=_limits(report, facts),
        findings_title="What was found" if facts.task_id is None else "What was found of the run",
        findings=[_text(line) for line in _findings(report)],
        gates=_gate_rows(report),
        scores=_score_rows(report["downstream"]),
        frozen=_frozen_rows(report["similarity"]),
        training=_training_rows(report["training"]),
        training_words=_training_words(report["training"]),
        hardware=_hardware(report["training"]),
        citation=CITATION,
    )


def render_cards(results: Path) -> dict[str, str]:
    """Cards of the reports <name>.report.json in a folder: name -> text."""
    cards = {}
    for path in sorted(results.glob("*.report.json")):
        name, report = path.name.removesuffix(".report.json"), json.loads(path.read_text(encoding="utf-8"))
        config = {**report["settings"], "architectures": ["ConceptEncoderForDiffusionMLM"]}
        cards[name] = str(render_card(report, CardFacts(repo_id=f"concept-encoder/{name}", config=config)))
    return cards


def _empty_report() -> dict[str, Any]:
    parts = dict.fromkeys(("verdict", "training", "geometry", "ledger"))
    return {**parts, "downstream": [], "similarity": [], "gates": [], "missing": {}, "settings": {}}


def _of_task(report: Mapping[str, Any], task_id: str | None) -> Mapping[str, Any]:
    if task_id is None:
        return report
    rows = [row for row in report["downstream"] if row["id"] == task_id]
    if not rows:
        known = ", ".join(row["id"] for row in report["downstream"]) or "none"
        raise ValueError(
            f"the report has no score of {task_id}, only of: {known}; write it again with concept-encoder report"
        )
    return {**report, "downstream": rows, "similarity": []}


def _text(value: Any) -> str:
    return escape_markdown(value)


# ----------------------------------------------------------------------------------------------------------- metadata


def _metadata(report: Mapping[str, Any], facts: CardFacts) -> ModelCardData:
    classifier = CLASSIFIER in facts.architecture
    name = facts.repo_id.split("/")[-1]
    results = [result for task in report["downstream"] for result in _fine_tuned(task)]
    results += [result for task in report["similarity"] for result in _frozen(task)]
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


def _datasets(report: Mapping[str, Any], facts: CardFacts) -> list[str]:
    """Hub ids of what was trained on: the corpus, and the task's data for a fine-tuned model."""
    names = [report["settings"].get("dataset_name")]
    if facts.task_id is not None:
        names.append(_dataset(facts.task_id.partition(".")[0])[0])
    hub_id = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
    return [name for name in names if name and hub_id.fullmatch(name) and not name.startswith(UNPUBLISHED)]


def _dataset(task: str) -> tuple[str, str | None]:
    row = BENCHMARKS.get(task)
    return (task, None) if row is None else (row.dataset_id, row.validation_config or row.config)


def _eval_result(task: str, row: Mapping[str, Any], metric: str, how: str, **args: Any) -> EvalResult:
    """One score. The model index groups by data, so how it was made is said of each metric, and so is its interval."""
    dataset, config = _dataset(task)
    regression = task in BENCHMARKS and BENCHMARKS[task].problem_type == "regression"
    interval = row.get("interval")
    span = "" if interval is None else f", 95 % interval {_interval(interval)}"
    args |= {} if interval is None else {"confidence_level": 0.95, "interval": [round(end, 4) for end in interval]}
    return EvalResult(
        task_type="sentence-similarity" if regression else "text-classification",
        task_name=task,
        dataset_type=dataset,
        dataset_name=task,
        dataset_config=config,
        dataset_split=args.pop("split", "validation"),
        metric_type=metric,
        metric_name=f"{metric}, {how}{span}",
        metric_value=round(row["value"], 4),
        metric_args={"how": how, **args},
    )


def _fine_tuned(task: Mapping[str, Any]) -> list[EvalResult]:
    how = f"fine-tuned, protocol {task['protocol']}"
    results = []
    for row in task["scores"]:
        if row["value"] is None:
            continue
        args = {} if row["chance"] is None else {"chance": round(row["chance"], 4)}
        args |= {"split": task["split"] or "validation"}
        results.append(_eval_result(task["task"], row, row["id"], how, **args))
    return results


def _frozen(task: Mapping[str, Any]) -> list[EvalResult]:
    return [
        _eval_result(task["id"], row, row["metric"], f"not fine-tuned, {row['method']}")
        for row in task["rows"]
        if row["value"] is not None
    ]


# -------------------------------------------------------------------------------------------------------------- words


def _verdict(report: Mapping[str, Any], facts: CardFacts) -> list[str]:
    """Paragraphs, the one that a reader must not miss first."""
    note = [] if facts.note is None else [facts.note]
    if report["verdict"] is None:
        return [UNMEASURED, *note]
    overall, headline = report["verdict"]["overall"], _text(report["verdict"]["headline"])
    if facts.task_id is not None:
        (task,) = report["downstream"]
        judged = (
            f"The gates judge the checkpoint that was fine-tuned, and their verdict on it is {overall}: {headline}"
        )
        return [_task_words(task), *note, judged]
    return [OPENINGS[overall], *_collapse(report), *note, headline]


def _task_words(task: Mapping[str, Any]) -> str:
    """The primary metric against everything that it is to be compared with."""
    row = task["scores"][0]
    others = {"chance": row["chance"]}
    others |= {name: row["controls"].get(control, {}).get("value") for control, name in BESIDE.items()}
    beside = "; ".join(f"{name} {score(value)}" for name, value in others.items() if value is not None)
    span = "" if row["interval"] is None else f" ({_interval(row['interval'])})"
    verdict = f"**{row['verdict'][0].upper()}{row['verdict'][1:]}.**"
    return f"{verdict} On {_text(task['task'])}: {_text(row['id'])} {score(row['value'])}{span}; {beside}."


def _collapse(report: Mapping[str, Any]) -> list[str]:
    """Said when a gate on a rank failed; by RankMe where it was measured, else by the reference's effective rank."""
    failed = [row for gate in report["gates"] for row in gate["rows"] if row["verdict"] == "FAIL"]
    geometry = report["geometry"]
    if not geometry or not any("rank" in row["metric"] for row in failed):
        return []
    vectors = f"the {geometry['num_concepts']} vectors of a text span about"
    rank = geometry["spectrum"] and geometry["spectrum"]["views"]["within_raw"]["rankme"]
    if not rank:
        figures = {row["id"]: row["value"] for row in geometry["metrics"]}
        most = min(geometry["num_concepts"], geometry["hidden_size"])
        value = number(figures["global_effective_rank"], 3)
        return [f"{COLLAPSED} {vectors} {value} directions (global effective rank, of at most {most})."]
    noise = rank["nulls"]["gaussian"]
    opening = COLLAPSED if rank["value"] < COLLAPSED_SHARE * noise else REPEATING
    return [f"{opening} {vectors} {number(rank['value'], 3)} directions (RankMe), noise {number(noise, 3)}."]


def _description(report: Mapping[str, Any], facts: CardFacts) -> str:
    concepts, width = facts.config.get("num_concepts"), facts.config.get("hidden_size")
    size = "a few learned concept vectors" if concepts is None else f"{concepts} concept vectors of width {width}"
    text = f"A text encoder that compresses a text into {size} by cross-attention"
    if facts.task_id is not None:
        return f"{text}, fine-tuned on {_text(facts.task_id.partition('.')[0])}."
    if DIFFUSION in facts.architecture:
        return f"{text}, pretrained by masked diffusion: a decoder has to rebuild the text through them."
    return f"{text}."


def _findings(report: Mapping[str, Any]) -> list[str]:
    return report["verdict"]["findings"] if report["verdict"] else ["Nothing was measured."]


def _limits(report: Mapping[str, Any], facts: CardFacts) -> list[str]:
    settings, lines = {**facts.config, **report["settings"]}, []
    if settings.get("dataset_name") == "microworld":
        lines.append(
            "Trained on *microworld*, generated stories in a miniature English of a few hundred words. It shows that "
            "the method runs; it knows no real text, and its scores say nothing about English."
        )
    longest = facts.config.get("max_position_embeddings")
    if settings.get("max_length") is not None:
        lines.append(
            f"Trained on texts of up to {_text(settings['max_length'])} tokens; nothing is known beyond that length."
        )
    elif longest is not None:
        lines.append(f"Reads texts of up to {longest} tokens.")
    if settings.get("decoder_context") == "none" and DIFFUSION in facts.architecture:
        lines.append(
            "The decoder sees no other token, only the concepts: it is an autoencoder, its loss a conditional bound "
            "and not a language model's perplexity, and it does not write new text."
        )
    if facts.task_id is not None and len(report["downstream"][0]["seeds"]) > 1:
        lines.append("The scores are means over seeds; these weights are those of the first seed.")
    if any(len(task["seeds"]) == 1 for task in report["downstream"]):
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
    }


# ------------------------------------------------------------------------------------------------------------- tables


def _interval(interval: Sequence[float] | None) -> str:
    # Adding 0.0 makes -0.0 plain.
    return "–" if interval is None else " to ".join(f"{round(end, 3) + 0.0:.3f}" for end in interval)


def _gate_rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = [row for gate in report["gates"] for row in gate["rows"]]
    return [[_text(row["name"]), f"**{_text(row['verdict'])}**", _text(row["explanation"])] for row in rows]


def _score_rows(tasks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for task in tasks:
        for row in task["scores"]:
            twin, bag = (row["controls"].get(name, {}).get("value") for name in ("random_init", "bag_of_tokens"))
            cells = [_text(f"{task['task']}, {task['protocol']}"), _text(task["split"] or "–"), _text(row["id"])]
            cells += [score(row["value"]), _interval(row["interval"]), score(row["chance"]), score(twin), score(bag)]
            rows.append([*cells, _text(row["verdict"])])
    return rows


def _frozen_rows(tasks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            *(_text(cell) for cell in (task["id"], row["method"], row["metric"])),
            score(row["value"]),
            _interval(row["interval"]),
            score((row["random_init"] or {}).get("value")),
        ]
        for task in tasks
        for row in task["rows"]
    ]


def _training_rows(training: Mapping[str, Any] | None) -> list[list[str]]:
    if training is None:
        return []
    settings = {**training["settings"], "corpus": _corpus(training["settings"]["corpus"])}
    facts = {**settings, **dict(_flat("objective", training["objective"])), **training["outcome"]}
    return [[_text(name), _text(number(value))] for name, value in facts.items() if value is not None]


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A setting, or those of a mapping one by one."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, own in value.items():
        yield from _flat(f"{name}, {key}", own)


def _corpus(name: str | None) -> str | None:
    """A data set as a card names it: what was on the author's disk is no name for anybody else."""
    return f"{Path(name).name}, the author's own" if name is not None and name.startswith("./") else name


def _training_words(training: Mapping[str, Any] | None) -> str:
    if training is None:
        return ""
    settings = training["settings"]
    corpus = _text(_corpus(settings["corpus"]))
    return (
        f"Recipe {code_span(settings['recipe'])} of the package concept-encoder, on the corpus {corpus}: "
        f"{_text(number(settings['steps']))} steps, {_text(number(training['outcome']['tokens seen']))} tokens."
    )


def _hardware(training: Mapping[str, Any] | None) -> str:
    environment = training["environment"] if training else {}
    if not environment.get("device"):
        return "not recorded"
    threads = environment.get("threads")
    parts = ["a CPU" if environment["device"] == "cpu" else _text(environment["device"])]
    if environment["device"] == "cpu" and threads:
        parts.append(f"{threads} thread{'s' if threads > 1 else ''}")
    if environment.get("processes", 1) > 1:
        parts.append(f"{environment['processes']} processes")
    assert training is not None
    if training["outcome"].get("training time"):
        parts.append(f"{_text(training['outcome']['training time'])} of pretraining")
    return ", ".join(parts)

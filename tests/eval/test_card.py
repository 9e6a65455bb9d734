import ast
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from run_files import synthetic_pretrain, write_run, write_synthetic_run

from concept_encoder.eval.hub.card import CardFacts, render_card, render_cards
from concept_encoder.eval.report.report import build_report
from concept_encoder.eval.report.sections import duration
from concept_encoder.scripts.dev.cards import main as render_tree
from concept_encoder.utils.results import Report

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
REPORTS = sorted(RESULTS.glob("*.report.json"))
# What a template leaves behind when a value is missing.
PLACEHOLDERS = re.compile(
    r"\{\{|\}\}|\{%|%\}|TODO|FIXME|More Information Needed|\bNone\b|\bnan\b|\bundefined\b|<[a-z_]+>"
)
CONFIG = {"architectures": ["ConceptEncoderForDiffusionMLM"], "num_concepts": 16, "hidden_size": 64}
CLASSIFIER = {**CONFIG, "architectures": ["ConceptEncoderForSequenceClassificationPerceiver"]}


def facts(**changes) -> CardFacts:
    return CardFacts(**{"repo_id": "me/example", "config": CONFIG, **changes})


def name_of(path: Path) -> str:
    return path.name.removesuffix(".report.json")


@pytest.fixture(scope="module")
def cards() -> dict[str, str]:
    return render_cards(RESULTS)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    """Of a run with every part: two protocols, controls, frozen scores."""
    return build_report(write_synthetic_run(tmp_path_factory.mktemp("run")))


def paragraphs(card: ModelCard) -> list[str]:
    return [part for part in card.text.strip().split("\n\n") if not part.startswith("#")]


def cells(text: str) -> set[tuple[str, ...]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {tuple(cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")) for line in lines}


# ------------------------------------------------------------------------------------------------- cards of the tree


@pytest.mark.slow
def test_there_is_a_card_for_every_report(cards):
    assert REPORTS
    assert set(cards) == {name_of(path) for path in REPORTS}
    assert {path.stem for path in (ROOT / "model_cards").glob("*.md")} == {"template", *cards}


@pytest.mark.parametrize("path", REPORTS, ids=name_of)
def test_cards_of_the_tree_are_fresh(cards, path):
    written = (ROOT / "model_cards" / f"{name_of(path)}.md").read_text(encoding="utf-8")
    assert written == cards[name_of(path)], "render them again: python scripts/dev/cards.py"


@pytest.mark.slow
def test_the_script_writes_them(cards, tmp_path, capsys):
    render_tree(["--output_dir", str(tmp_path)])
    assert {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == cards
    assert str(tmp_path / "microworld.md") in capsys.readouterr().err


@pytest.mark.parametrize("path", REPORTS, ids=name_of)
def test_no_placeholder_is_left(cards, path):
    found = PLACEHOLDERS.search(cards[name_of(path)])
    assert found is None, found


def test_a_placeholder_would_be_found():
    for text in ("{{ x }}", "score None", "nan", "[More Information Needed]", "TODO", "<repo_id>"):
        assert PLACEHOLDERS.search(text)


@pytest.mark.parametrize("path", REPORTS, ids=name_of)
def test_numbers_are_those_of_the_report(cards, path):
    report, card = Report.load(path), ModelCard(cards[name_of(path)])
    rows = cells(card.text)
    expected = []
    for task in report.downstream:
        for metric, row in task.scores.items():
            expected.append((task.task, task.protocol, metric, row.value, row.interval, row.chance))
    for task, protocol, metric, value, interval, chance in expected:
        low_high = "–" if interval is None else " to ".join(f"{end + 0.0:.3f}" for end in interval)
        row = (f"{task}, {protocol}", "validation", metric, f"{value:.3f}", low_high.replace("-0.000", "0.000"))
        assert any(found[:5] == row and found[5] == f"{chance:.3f}" for found in rows), row
    listed = {
        (result.task_name, result.metric_type, result.metric_args["how"]): result for result in card.data.eval_results
    }
    frozen = [(task.task, row) for task in report.similarity for row in task.rows]
    assert len(card.data.eval_results) == len(listed) == len(expected) + len(frozen)
    for task, row in frozen:
        result = listed[task, row.metric, f"not fine-tuned, {row.method}"]
        assert result.metric_value == pytest.approx(row.value, abs=5e-5)
    for task, protocol, metric, value, interval, chance in expected:
        result = listed[task, metric, f"fine-tuned, protocol {protocol}"]
        assert result.metric_value == pytest.approx(value, abs=5e-5)
        assert result.metric_args["chance"] == pytest.approx(chance, abs=5e-5)
        assert f"protocol {protocol}" in result.metric_name
        assert result.dataset_split == "validation"
        if interval is None:
            assert "interval" not in result.metric_args
        else:
            assert result.metric_args["interval"] == pytest.approx(interval, abs=5e-5)
            assert "95 % interval " in result.metric_name
    time = duration(report.training.train_seconds)
    assert ("tokens seen", f"{report.training.tokens_seen:,}") in rows
    assert ("training time", time) in rows
    assert time in card.text.split("Hardware: ")[1]


@pytest.mark.parametrize("path", REPORTS, ids=name_of)
def test_the_hub_accepts_the_metadata(cards, path, hub):
    """What it checks besides, localhub does not know; so it is spelled out here."""
    card = ModelCard(cards[name_of(path)])
    card.validate()
    assert [request["path"] for request in hub.requests()] == ["/api/validate-yaml"]
    data = yaml.safe_load(str(card).split("---")[1])
    assert data["license"] == "apache-2.0"
    assert data["pipeline_tag"] == "feature-extraction"
    assert re.fullmatch("[a-z]{2}", data["language"])
    assert all(isinstance(tag, str) for tag in data["tags"])
    (index,) = data["model-index"]
    for entry in index["results"]:
        assert entry["task"]["type"] in ("text-classification", "sentence-similarity", "text-retrieval")
        assert isinstance(entry["dataset"]["type"], str) and isinstance(entry["dataset"]["name"], str)
        for metric in entry["metrics"]:
            assert isinstance(metric["type"], str) and isinstance(metric["value"], float)


def test_a_collapsed_encoder_is_called_so_at_once(cards):
    said = {
        "prose_small": "**Concepts repeat one another:** the 32 vectors of a text span about 9.81 directions (RankMe)",
        "prose_small_vocab50k": "**The concepts have collapsed:** the 32 vectors of a text span about 2.58 directions",
        "prose_small_init002": "**The concepts have collapsed:** the 32 vectors of a text span about 1.01 directions",
    }
    for name, words in said.items():
        first, second, *_ = paragraphs(ModelCard(cards[name]))
        assert first.startswith("**Failed.** This model does not meet the gates")
        assert second.startswith(words)
    first, second, *_ = paragraphs(ModelCard(cards["microworld"]))
    assert first.startswith("**Passed.**")
    assert "collapsed" not in first + second
    assert "its scores say nothing about English" in cards["microworld"]


@pytest.mark.parametrize("name", [name_of(path) for path in REPORTS])
def test_examples_are_python_and_name_the_repository(cards, name):
    blocks = re.findall(r"```python\n(.*?)```", cards[name], re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        ast.parse(block)
    assert f'"concept-encoder/{name}"' in blocks[0]


# --------------------------------------------------------------------------------------------------------- rendering


@pytest.mark.slow
def test_metadata(report):
    card = render_card(report, facts(license="mit", language="pl"))
    data = card.data.to_dict()
    assert {name: data[name] for name in ("library_name", "pipeline_tag", "license", "language")} == {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "license": "mit",
        "language": "pl",
    }
    assert "masked-diffusion" in data["tags"]
    assert "base_model" not in data
    frozen = [result for result in card.data.eval_results if "not fine-tuned" in result.metric_name]
    scored = [row for task in report.similarity for row in task.rows if row.value is not None]
    scored += [row for task in report.retrieval for row in task.rows[0].scores.values()]
    assert len(frozen) == len(scored)
    assert {result.metric_args["interval"][0] for result in frozen} == {round(row.interval[0], 4) for row in scored}
    protocols = {result.metric_args["how"] for result in card.data.eval_results}
    assert {"fine-tuned, protocol reference", "fine-tuned, protocol tuned"} <= protocols
    assert PLACEHOLDERS.search(str(card)) is None


def test_twin_and_bag_stand_beside_the_score(report):
    rows = cells(render_card(report, facts()).text)
    assert next(row[:7] for row in rows if row[:3] == ("microworld_similarity, tuned", "validation", "pearson")) == (
        "microworld_similarity, tuned",
        "validation",
        "pearson",
        "0.610",
        "0.580 to 0.640",
        "0.000",
        "0.490",
    )


@pytest.mark.parametrize(
    ("corpus", "listed"), [("owner/corpus", ["owner/corpus"]), ("local/english-prose", None), ("microworld", None)]
)
def test_only_corpora_of_the_hub_are_linked(tmp_path, corpus, listed):
    report = build_report(write_run(tmp_path, pretrain=synthetic_pretrain(corpus=corpus)))
    card = render_card(report, facts())
    assert card.data.to_dict().get("datasets") == listed
    assert f"on the corpus {corpus}" in card.text
    assert "No task has been scored." in card.text
    assert "model-index" not in str(card)


def test_no_path_of_the_author_is_a_data_set(tmp_path):
    card = render_card(build_report(write_run(tmp_path, pretrain=synthetic_pretrain(corpus="./my/texts"))), facts())
    assert "datasets" not in card.data.to_dict() and "./my" not in str(card)
    assert "on the corpus texts, the author's own" in card.text


def test_the_settings_of_a_corruption_are_rows(tmp_path):
    objective = {"corruption": {"tsdae": {"deletion_rate": 0.6}}, "regularizers": {}, "label_smoothing": 0.0}
    run = replace(synthetic_pretrain(), objective=objective)
    card = render_card(build_report(write_run(tmp_path, pretrain=run)), facts())
    assert "| corruption, tsdae, deletion_rate | 0.6 |" in str(card).replace("\\_", "_")
    assert "regularizers" not in str(card) and "{" not in card.text.split("tsdae")[1][:40]


@pytest.mark.slow
@pytest.mark.parametrize(("overall", "opening"), [("PASS", "**Passed.**"), ("INCONCLUSIVE", "**Not decided.**")])
def test_the_verdict_opens_the_card(report, overall, opening):
    judged = replace(report, verdict=replace(report.verdict, overall=overall), gates=[])
    assert paragraphs(render_card(judged, facts()))[0].startswith(opening)


def test_weights_that_nobody_measured():
    card = render_card(None, facts(note="Intermediate checkpoint of step 20."))
    assert paragraphs(card)[:2] == [
        "**Not judged.** Nothing about these weights has been measured: no score, no gate, no geometry.",
        "Intermediate checkpoint of step 20.",
    ]
    assert "Hardware: not recorded. Carbon: not measured." in card.text
    assert PLACEHOLDERS.search(str(card)) is None


def test_a_fine_tuned_head(report):
    card = render_card(
        report, facts(config=CLASSIFIER, task_id="microworld_paraphrase.tuned", base_model="me/pretrained")
    )
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "text-classification"
    assert (data["base_model"], data["base_model_relation"]) == ("me/pretrained", "finetune")
    assert {result.dataset_name for result in card.data.eval_results} == {"microworld_paraphrase"}
    assert {result.metric_args["how"] for result in card.data.eval_results} == {"fine-tuned, protocol tuned"}
    assert 'repo, revision = "me/example", "the full commit hash"' in card.text
    assert 'pipeline("text-classification", model=repo, revision=revision, trust_remote_code=True)' in card.text
    assert paragraphs(card)[0] == (
        "**Not told from chance.** On microworld\\_paraphrase: accuracy 0.530 (0.500 to 0.560); chance 0.510; the bag "
        "of tokens 0.620; the random-initialised twin 0.520."
    )
    assert f"and their verdict on it is {report.verdict.overall}: " in card.text
    assert "these weights are those of the first seed" in card.text
    assert PLACEHOLDERS.search(str(card)) is None
    with pytest.raises(ValueError, match=r"no score of rte\.tuned, only of: microworld_entailment\.reference"):
        render_card(report, facts(task_id="rte.tuned"))


def test_an_undefined_score_is_shown_and_not_indexed(report):
    first = report.downstream[0]
    task = replace(first, scores={first.primary_metric: replace(first.primary, value=None)})
    card = render_card(replace(report, downstream=[task], similarity=[], retrieval=[]), facts())
    assert "model-index" not in str(card)
    assert any(row[3] == "–" for row in cells(card.text) if row[0] == f"{task.task}, {task.protocol}")
    assert all(math.isfinite(result.metric_value) for result in card.data.eval_results or [])

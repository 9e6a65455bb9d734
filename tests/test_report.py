"""The report: from result files to JSON, Markdown and HTML."""

import json
import runpy
from html.parser import HTMLParser
from pathlib import Path

import markdown
import numpy as np
import pytest

from concept_encoder.eval import report as report_module
from concept_encoder.eval.findings import next_steps, sampling_interval, score_row
from concept_encoder.eval.gates import Gate, GateResult
from concept_encoder.eval.geometry import grade
from concept_encoder.eval.report import (
    REFERENCE_FILE,
    build_report,
    escape_markdown,
    number,
    render_html,
    render_markdown,
    summary_table,
    write_report,
)

SCRIPT = Path(__file__).parents[1] / "scripts" / "report.py"
SHARED = Path(__file__).parents[2] / "shared"
REFERENCE = json.loads(REFERENCE_FILE.read_text(encoding="utf-8"))
HOSTILE = "<script>alert('x')</script> | `*_"


# -------------------------------------------------------------------------------------- a run folder, without training


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
    attention = random.dirichlet(np.full(11, 0.2), size=concepts)
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
        "concept_attention": {
            "tokens": "[CLS] the $red fox$ gave anna a coin yesterday . [SEP]".split(),
            "weights": attention.round(4).tolist(),
        },
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


def write_run(folder: Path, pretrain: dict | None, geometry: dict | None, finetune: list[dict]) -> Path:
    (folder / "finetune").mkdir(parents=True)
    files = {"pretrain.json": pretrain, "geometry.json": geometry}
    files |= {f"finetune/{run['task']}.{run['protocol']}.json": run for run in finetune}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    return folder


def write_synthetic_run(folder: Path, corpus: str = "microworld") -> Path:
    finetune = [
        synthetic_finetune("microworld_similarity", {"pearson": 0.61, "spearman": 0.58}, {"pearson": 0.0}, 1000),
        synthetic_finetune(
            "microworld_paraphrase", {"accuracy": 0.53, "f1": 0.64}, {"accuracy": 0.51, "f1": 0.67}, 1000
        ),
        synthetic_finetune("microworld_entailment", {"accuracy": 0.71}, {"accuracy": 0.345}, 1000),
    ]
    return write_run(folder, synthetic_pretrain(corpus=corpus), synthetic_geometry(corpus=corpus), finetune)


def write_reference_run(folder: Path) -> Path:
    """The reference run as if this package had written its files, as far as its figures go."""
    run = REFERENCE["runs"][0]
    training = run["training"]
    pretrain = {
        "kind": "pretrain",
        "recipe": "diffusion_l2",
        "model": run["model"],
        "data": {name: training[name] for name in ("dataset_name", "tokenizer_name", "max_length")},
        "objective": {name: training[name] for name in ("t_min", "t_max", "label_smoothing")},
        "training": training,
        "parameters": {},
        "steps": 39000,
        **{name: training[name] for name in ("train_loss", "eval_loss", "grad_norm_peak", "grad_norm_final")},
        "evaluation": {},
    }
    geometry = {
        "kind": "geometry",
        "num_concepts": 128,
        "hidden_size": 512,
        "num_samples": run["geometry_samples"],
        "corpus": {"dataset_name": training["dataset_name"]},
        "metrics": run["geometry"],
        "grades": grade(run["geometry"], 128, 512),
        "singular_values": run["singular_values"],
    }
    finetune = []
    for task, metrics in run["downstream"].items():
        facts = REFERENCE["fine_tuning"][task]
        options = {"rule": facts["chance_rule"], "epochs": facts["epochs"]}
        finetune.append(synthetic_finetune(task, metrics, facts["chance"], facts["validation_examples"], **options))
    return write_run(folder, pretrain, geometry, finetune)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A synthetic run with its report written."""
    folder = write_synthetic_run(tmp_path_factory.mktemp("runs") / "sample")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def reference_report(tmp_path_factory) -> dict:
    return build_report(write_reference_run(tmp_path_factory.mktemp("runs") / "reference"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def scores_of(report: dict) -> dict:
    return {f"{row['id']}/{score['id']}": score for row in report["downstream"] for score in row["scores"]}


# ----------------------------------------------------------------------------------------------- the reference figures


def test_carried_reference_equals_the_reported_figures():
    path = SHARED / "reference" / "diffusion_l2.json"
    if not path.is_file():
        pytest.skip("needs ../shared/reference, which is not here")
    reported = read_json(path)
    run, *baselines = REFERENCE["runs"]
    geometry = dict(reported["geometry"])
    assert run["singular_values"] == geometry.pop("top5_singular_values")
    assert run["geometry_samples"] == geometry.pop("n_samples")
    for key in ("n_batches", "batch_size", "corpus"):
        geometry.pop(key)
    assert run["geometry"] == geometry
    assert [run["geometry"] for run in baselines[:2]] == list(reported["geometry_baselines"].values())
    assert REFERENCE["geometry_targets"] == reported["geometry_targets"]
    assert REFERENCE["failed_predecessor"] == reported["failed_predecessor"]
    for name in ("train_loss", "eval_loss", "grad_norm_peak", "grad_norm_final", "learning_rate", "warmup_steps"):
        assert run["training"][name] == reported["training"][name]
    for task, figures in run["downstream"].items():
        settings = {key: REFERENCE["fine_tuning"][task][key] for key in ("epochs", "learning_rate", "batch_size")}
        assert {**figures, **settings} == reported["downstream"][task]
    downstream = {run["id"]: run["downstream"] for run in baselines}
    assert downstream["perceiver_mlm_l2"] == {"mrpc": {"f1": 0.806}, "qqp": {"f1": 0.673}}
    assert downstream["perceiver_mlm_l6_via_decoder"] == {"mrpc": {"f1": 0.8273}, "stsb": {"pearson": 0.650}}


def test_reference_run_fails_both_of_its_gates(reference_report):
    assert [row["verdict"] for row in reference_report["gates"]] == ["FAIL", "FAIL"]
    assert reference_report["verdict"]["overall"] == "FAIL"
    assert reference_report["verdict"]["headline"] == "2 of 2 gates failed."


def test_reference_scores_stand_beside_chance(reference_report):
    verdicts = {name: score["verdict"] for name, score in scores_of(reference_report).items()}
    assert verdicts == {
        "mrpc.reference/f1": "at or below chance",
        "mrpc.reference/accuracy": "not told from chance",
        "paws.reference/accuracy": "not told from chance",
        "sick_entailment.reference/accuracy": "not told from chance",
        "sick_relatedness.reference/pearson": "not told from chance",
        "stsb.reference/pearson": "above chance",
    }
    assert scores_of(reference_report)["mrpc.reference/f1"]["margin"] == pytest.approx(-0.0122)
    assert "stsb.reference (explains 1.9% of the variance)" in " ".join(reference_report["verdict"]["findings"])


def test_reference_run_is_like_itself(reference_report):
    comparison = reference_report["comparison"]
    assert comparison["not_like_for_like"] == []
    for name in ("settings", "geometry", "downstream"):
        table = comparison[name]
        assert table["runs"][:2] == ["this run", "diffusion L2"]
        assert all(row["values"][0] == row["values"][1] for row in table["rows"])


def test_figures_need_their_data(reference_report):
    assert [figure["id"] for figure in reference_report["figures"]] == ["singular_values", "downstream"]


# ----------------------------------------------------------------------------------------------------------- composing


def test_report_has_every_section(run):
    report = read_json(run / "report.json")
    assert report["kind"] == "report"
    assert report["run"]["name"] == "sample"
    assert report["run"]["files"][:3] == [
        "pretrain.json",
        "geometry.json",
        "finetune/microworld_entailment.reference.json",
    ]
    assert report["missing"] == {}
    assert {figure["id"] for figure in report["figures"]} == set(report_module.FIGURES)
    assert report == build_report(run)
    assert report["training"]["curves"]["loss"][0] == [0, pytest.approx(report["summary"][0]["value"], abs=6)]
    assert report["training"]["settings"]["texts per step"] == 64


def test_metrics_that_the_layer_norm_fixes_are_marked(run):
    rows = {row["id"]: row for row in read_json(run / "report.json")["geometry"]["metrics"]}
    for name in ("isotropy", "collapsed_dimensions", "mean_concept_norm"):
        assert rows[name]["by_construction"]
        assert "LayerNorm" in rows[name]["note"]
    assert not rows["mean_concept_similarity"]["by_construction"]
    findings = read_json(run / "report.json")["verdict"]["findings"]
    assert "1 GOOD, 1 OK, 1 POOR. Not counted, because fixed by construction: isotropy." in findings[0]


def test_metrics_unknown_to_the_report_are_shown(tmp_path):
    geometry = synthetic_geometry()
    geometry["metrics"]["within_rankme"] = 9.5
    geometry["intervals"] = {"within_rankme": [9.0, 10.0]}
    report = build_report(write_run(tmp_path / "run", None, geometry, []))
    row = report["geometry"]["metrics"][-1]
    assert (row["id"], row["group"], row["interval"]) == ("within_rankme", "other", [9.0, 10.0])
    assert "9.000 to 10.000" in render_markdown(report)


def test_differences_from_the_reference_are_said(run):
    lines = read_json(run / "report.json")["comparison"]["not_like_for_like"]
    assert [line.split(":")[0] for line in lines] == [
        "pretraining corpus",
        "tokenizer",
        "tokens per text",
        "concepts C",
        "hidden size D",
        "decoder context",
    ]
    assert lines[3] == "concepts C: 16 here, 128 in diffusion L2; compare normalised ranks only."


@pytest.mark.parametrize("kept", ["pretrain", "geometry", "finetune"])
def test_one_part_is_enough_and_the_others_are_named(kept, tmp_path):
    pretrain = synthetic_pretrain() if kept == "pretrain" else None
    geometry = synthetic_geometry() if kept == "geometry" else None
    finetune = [synthetic_finetune("stsb", {"pearson": 0.8}, {"pearson": 0.0}, 1500)] if kept == "finetune" else []
    report = build_report(write_run(tmp_path / "run", pretrain, geometry, finetune))
    commands = {"pretrain": "pretrain.py", "geometry": "analyze.py", "finetune": "finetune.py"}
    steps = " ".join(step["do"] for step in report["next_steps"])
    page = render_markdown(report)
    assert len(report["missing"]) == 2
    for name, command in commands.items():
        assert (f"scripts/{command}" in steps) == (name != kept)
        assert (f"scripts/{command}" in page) == (name != kept)
    verdicts = [row["verdict"] for row in report["gates"]]
    assert (
        verdicts
        == {
            "pretrain": ["INCONCLUSIVE", "INCONCLUSIVE"],
            "geometry": ["PASS", "INCONCLUSIVE"],
            "finetune": ["INCONCLUSIVE", "PASS"],
        }[kept]
    )


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"run folder .*nothing' does not exist; give the --output_dir"):
        build_report(tmp_path / "nothing")


def test_folder_without_results(tmp_path):
    with pytest.raises(ValueError, match=r"holds no results \(pretrain.json, geometry.json, finetune/\*.json\)"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"geometry.json cannot be read as JSON: Expecting property name"),
        ('{"kind": "geometry", "x": NaN}', r"geometry.json cannot be read as JSON: NaN is not JSON"),
        ('{"kind": "pretrain"}', r"geometry.json must be a JSON object with kind 'geometry', got kind 'pretrain'"),
        ("[]", r"geometry.json must be a JSON object with kind 'geometry', got kind None"),
        (
            '{"kind": "geometry", "metrics": {}}',
            r"lacks num_concepts, hidden_size, grades; write it anew with: python",
        ),
    ],
)
def test_bad_result_file(text, message, tmp_path):
    (tmp_path / "geometry.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["geometry.json"]


# ------------------------------------------------------------------------------------------------------ against chance


@pytest.mark.parametrize(
    ("metric", "value", "chance", "examples", "verdict"),
    [
        ("accuracy", 0.70, 0.68, 100, "not told from chance"),
        ("accuracy", 0.70, 0.68, 100_000, "above chance"),
        ("accuracy", 0.68, 0.68, 100, "at or below chance"),
        ("accuracy", 0.70, 0.68, None, "above chance"),
        ("pearson", 0.06, 0.0, 495, "not told from chance"),
        ("pearson", None, 0.0, 495, "at or below chance"),
        ("f1", 0.82, 0.81, 408, "above chance"),
        ("f1", 0.82, None, 408, "no chance level"),
    ],
)
def test_score_against_chance(metric, value, chance, examples, verdict):
    assert score_row(metric, value, chance, examples)["verdict"] == verdict


def test_a_measured_interval_wins():
    row = score_row("accuracy", 0.7, 0.68, 100_000, interval=[0.6, 0.8])
    assert (row["verdict"], row["interval"], row["interval_rule"]) == (
        "not told from chance",
        [0.6, 0.8],
        "as measured",
    )


def test_score_without_interval_says_so():
    assert score_row("f1", 0.9, 0.8, 408)["note"] == "by the point value, no interval"


def test_wilson_interval_by_hand():
    n, p, z = 408, 281 / 408, 1.959964
    centre, half = (p + z * z / 2 / n), z * np.sqrt(p * (1 - p) / n + z * z / 4 / n**2)
    interval, rule = sampling_interval("accuracy", p, n)
    assert interval == pytest.approx([(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)], abs=1e-6)
    assert rule == "95 %, Wilson, 408 examples"


def test_correlation_interval_covers():
    """Of 400 samples with correlation 0.5, about 95 % have it in their interval."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x, noise = random.normal(size=(2, 80))
        value = float(np.corrcoef(x, 0.5 * x + np.sqrt(0.75) * noise)[0, 1])
        (low, high), _ = sampling_interval("pearson", value, 80)
        covered += low <= 0.5 <= high
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize(
    ("metric", "value", "examples"), [("f1", 0.5, 100), ("pearson", 1.0, 100), ("pearson", 0.5, 3)]
)
def test_no_interval_without_a_formula(metric, value, examples):
    assert sampling_interval(metric, value, examples) == (None, None)


# ---------------------------------------------------------------------------------------------------------- next steps


def rules_of(report: dict, *verdicts: str) -> list[str]:
    gate = Gate("rank", "geometry/metrics/global_effective_rank_normalized", ">", 0.2, "because", "us")
    results = [GateResult(gate, 0.1, None, verdict, "stated") for verdict in verdicts]
    return [step["rule"] for step in next_steps(report, results)]


def test_next_steps_follow_the_figures(run):
    report = read_json(run / "report.json")
    report["training"]["curves"]["eval_nelbo_bits_per_token"] = [[0, 8.0], [1, 2.0], [2, 1.999]]
    assert rules_of(report, "PASS") == ["duplicates", "at chance", "no twin", "all pass"]
    assert rules_of(report, "FAIL") == ["low rank", "duplicates", "at chance", "no twin"]

    report["training"]["curves"]["eval_nelbo_bits_per_token"] = [[0, 8.0], [1, 2.0], [2, 1.5]]
    assert rules_of(report, "PASS")[0] == "still falling"
    report["training"]["curves"]["eval_loss"] = [[0, 5.0], [1, 1.0], [2, 1.5]]
    assert rules_of(report, "PASS")[0] == "loss rose again"
    for row in report["geometry"]["metrics"]:
        row["value"] = 0.1
    for row in report["downstream"]:
        row["verdict"] = "above chance"
    assert rules_of(report, "INCONCLUSIVE") == ["loss rose again", "still falling", "no twin", "undecided gate"]


@pytest.mark.parametrize(("context", "advice"), [("none", "decoder_context="), ("latent", "context layer")])
def test_flat_loss_by_timestep_is_noticed(run, context, advice):
    report = read_json(run / "report.json")
    report["settings"]["decoder_context"] = context
    for row in report["training"]["by_timestep"]:
        row["nll_bits"] = 1.5 + row["timestep"] / 100
    steps = {step["rule"]: step for step in next_steps(report, [])}
    assert advice in steps["flat in time"]["do"]
    assert "1.5 to 1.51 bits" in steps["flat in time"]["because"]


# ----------------------------------------------------------------------------------------------------------- rendering


class Page(HTMLParser):
    """Tags, ids, links and sources of a page; fails on tags that do not nest."""

    VOID = {"meta", "img", "source", "br", "wbr", "link"}

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.ids, self.links, self.sources = [], [], set(), set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        self.links.add(attributes.get("href"))
        self.sources += [attributes[name] for name in ("src", "srcset") if name in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_one_well_formed_file(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert len(page.sources) == 2 * len(report_module.FIGURES)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert {link.removeprefix("#") for link in page.links if link} <= page.ids
    assert "http" not in text.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in text
    assert text.index("could not be decided") < text.index("<h2>Training</h2>")


def test_html_escapes_what_it_is_given(tmp_path):
    folder = write_synthetic_run(tmp_path / "run", corpus=HOSTILE)
    report = build_report(folder)
    report["run"]["name"] = HOSTILE
    report["figures"] = []
    text = render_html(report, folder)
    page = Page(text)
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text


def test_markdown_escapes_what_it_is_given(tmp_path):
    report = build_report(write_synthetic_run(tmp_path / "run", corpus=HOSTILE))
    text = render_markdown(report).partition("## Raw JSON")[0]
    page = Page(markdown.markdown(text, extensions=["tables"]))
    assert "script" not in page.tags


def test_markdown_tables_are_whole(run):
    lines = (run / "report.md").read_text(encoding="utf-8").partition("## Raw JSON")[0].splitlines()
    tables, width = 0, None
    for line in lines:
        if not line.startswith("|"):
            width = None
            continue
        cells = line.replace("\\|", "").count("|")
        tables += width is None
        assert width in (None, cells), line
        width = cells
    assert tables == 12
    html = markdown.markdown("\n".join(lines), extensions=["tables"])
    assert Page(html).tags.count("table") == tables


def test_markdown_names_the_figures_that_exist(run):
    text = (run / "report.md").read_text(encoding="utf-8")
    for name in report_module.FIGURES:
        assert f"](figures/{name}.png)" in text
        assert (run / "figures" / f"{name}.png").is_file()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Training",
        "Collapse",
        "Diversity",
        "Singular values",
        "Dimension use",
        "Comparison with the reference runs",
        "Downstream",
        "Gates",
        "Next steps",
        "Raw JSON",
    ]


def test_pages_come_from_the_json_alone(run):
    report = read_json(run / "report.json")
    assert render_markdown(report) == (run / "report.md").read_text(encoding="utf-8")
    assert render_html(report, run) == (run / "report.html").read_text(encoding="utf-8")


def test_nothing_is_left_half_written(run):
    assert not [path for path in run.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (39000, "39,000"),
        (0.0, "0"),
        (1.08e-9, "1.08e-09"),
        (0.0003, "0.0003"),
        (21.7401, "21.74"),
        (1234.5, "1,234"),
        (3.2e7, "3.20e+07"),
        ("cosine", "cosine"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_escape_markdown():
    assert escape_markdown("a|b\n<i>_*`") == "a\\|b &lt;i&gt;\\_\\*\\`"


# --------------------------------------------------------------------------------------------------------- the command


def test_command_prints_the_results(tmp_path, capsys):
    run = write_run(
        tmp_path / "run", None, None, [synthetic_finetune("stsb", {"pearson": 0.8}, {"pearson": 0.0}, 1500)]
    )
    runpy.run_path(str(SCRIPT))["main"]([str(run)])
    printed = capsys.readouterr().out
    assert printed.startswith("INCONCLUSIVE: 1 of 2 gates could not be decided.")
    for words in ("tasks above chance", "chance 0.000  above chance", "gate: STS-B Pearson", "PASS"):
        assert words in printed
    for name in ("report.html", "report.md", "report.json"):
        assert f"Written: {run / name}" in printed
        assert (run / name).is_file()


def test_command_refuses_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))["main"]([str(tmp_path / "nothing")])
    assert stop.value.code == 2
    assert "does not exist; give the --output_dir of a pretraining run" in capsys.readouterr().err


def test_summary_table_has_no_empty_part(reference_report):
    assert summary_table(reference_report).count("chance 0.") == 6

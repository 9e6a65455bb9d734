"""The report: from result files to JSON, Markdown and HTML."""

import json
import runpy
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
from run_files import (
    synthetic_finetune,
    synthetic_geometry,
    synthetic_ledger,
    synthetic_pretrain,
    synthetic_reading,
    synthetic_retrieval,
    synthetic_similarity,
    with_controls,
    write_run,
    write_synthetic_run,
)

from concept_encoder.eval.report import plots
from concept_encoder.eval.report.blocks import Table, number
from concept_encoder.eval.report.figures import FIGURES
from concept_encoder.eval.report.findings import curve, read_reference
from concept_encoder.eval.report.pages import escape_markdown, render_html, render_markdown, with_commands
from concept_encoder.eval.report.reference_run import write_reference_run
from concept_encoder.eval.report.report import PARTS, build_report, summary_table
from concept_encoder.eval.report.report import report as write_report
from concept_encoder.eval.report.sections import IGNORED, NOTES, sections
from concept_encoder.utils.results import Report

SCRIPT = Path(__file__).parents[2] / "scripts" / "report.py"
SHARED = Path(__file__).parents[3] / "shared"
REFERENCE = read_reference()
HOSTILE = "<script>alert('x')</script> | `*_"
STSB = synthetic_finetune("stsb", {"pearson": 0.8}, {"pearson": 0.0}, 1500)
NOT_DRAWN = replace(synthetic_geometry(), singular_values=[], similarity_matrix=[], dimension_std=[])


@pytest.fixture(scope="module", autouse=True)
def coarse_figures():
    """Figures as always but with few pixels, which take less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 50)
        yield


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A run whose decoder takes little through its concepts."""
    return write_synthetic_run(tmp_path_factory.mktemp("runs") / "other_run", bits=0.31)


@pytest.fixture(scope="module")
def run(tmp_path_factory, other) -> Path:
    """A synthetic run with its report written, next to another run."""
    folder = write_synthetic_run(tmp_path_factory.mktemp("runs") / "sample")
    write_report(folder, other)
    return folder


@pytest.fixture(scope="module")
def reference_report(tmp_path_factory) -> Report:
    folder = tmp_path_factory.mktemp("runs") / "reference"
    write_reference_run(folder)
    return build_report(folder)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_report(folder: Path) -> Report:
    return Report.load(folder / "report.json")


def scores_of(report: Report) -> dict:
    return {f"{task.id}/{name}": score for task in report.downstream for name, score in task.scores.items()}


def verdicts_of(report: Report, gate_set: str) -> list[str]:
    (rows,) = [row.rows for row in report.gates if row.id == gate_set]
    return [row.verdict for row in rows]


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


def test_reference_run_fails_both_sets_of_gates(reference_report):
    assert verdicts_of(reference_report, "gate_1") == ["FAIL", "FAIL"]
    assert verdicts_of(reference_report, "strict") == ["INCONCLUSIVE", "INCONCLUSIVE", "FAIL", *["INCONCLUSIVE"] * 2]
    assert reference_report.verdict.overall == "FAIL"
    headline = "Gate 1 of the reference: 2 of 2 gates failed. Strict gate: 1 of 5 gates failed."
    assert reference_report.verdict.headline == headline


def test_reference_scores_cannot_be_told_from_chance(reference_report):
    assert reference_report.verdict.findings[0] == (
        "The downstream scores cannot be told from chance: mrpc.reference, paws.reference, sick_entailment.reference "
        "and sick_relatedness.reference are at chance. Above it, but explaining next to nothing: "
        "stsb.reference (pearson 0.138 explains 1.9% of the variance)."
    )


def test_reference_scores_stand_beside_chance(reference_report):
    verdicts = {name: score.verdict for name, score in scores_of(reference_report).items()}
    assert verdicts == {
        "mrpc.reference/f1": "at or below chance",
        "mrpc.reference/accuracy": "not told from chance",
        "paws.reference/accuracy": "not told from chance",
        "sick_entailment.reference/accuracy": "not told from chance",
        "sick_relatedness.reference/pearson": "not told from chance",
        "stsb.reference/pearson": "barely above chance",
    }
    assert scores_of(reference_report)["mrpc.reference/f1"].margin == pytest.approx(-0.0122)


def test_reference_run_is_like_itself(reference_report):
    comparison = reference_report.comparison
    assert comparison.not_like_for_like == []
    for table in (comparison.settings, comparison.geometry, comparison.downstream):
        assert table.runs[:2] == ["this run", "diffusion L2"]
        assert table.rows and all(row.values[0] == row.values[1] for row in table.rows)


def test_figures_need_their_data(reference_report):
    assert [figure.id for figure in reference_report.figures] == ["singular_values", "scores"]


# ----------------------------------------------------------------------------------------------------------- composing


@pytest.mark.slow
def test_report_has_every_section(run, other):
    report = read_report(run)
    assert read_json(run / "report.json")["kind"] == "report"
    assert report.run.name == "sample"
    files = ["pretrain.json", "geometry.json", "ledger.json", "reading.json"]
    assert report.run.files[:5] == [*files, "finetune/microworld_entailment.reference.json"]
    assert report.missing == {}
    assert {figure.id for figure in report.figures} == set(FIGURES)
    assert report == build_report(run, other)
    assert report.folder == run
    assert curve(report.training, "loss")[0] == (0, pytest.approx(report.summary[0].value, abs=6))
    assert "| texts per step | 64 |" in render_markdown(report)


def table(report: Report, section: str) -> list[list]:
    """Rows of the first table of a section."""
    (blocks,) = [each.blocks for each in sections(report) if each.id == section]
    return next(block.rows for block in blocks if isinstance(block, Table))


def test_metrics_that_the_layer_norm_fixes_are_marked(run):
    report = read_report(run)
    for name in ("isotropy", "collapsed_dimensions", "mean_concept_norm"):
        assert name in report.geometry.by_construction
        assert "LayerNorm" in NOTES[name]
    assert "mean_concept_similarity" not in report.geometry.by_construction
    rows = {row[0].text: row for row in table(report, "dimensions")}
    assert rows["isotropy"][3].text == "by construction"
    assert rows["isotropy"][4].text.endswith("The reference would say POOR.")
    findings = " ".join(report.verdict.findings)
    assert "1 GOOD, 1 OK, 1 POOR. Not counted, because fixed by construction: isotropy." in findings


def test_differences_from_the_reference_are_said(tmp_path):
    report = build_report(write_run(tmp_path / "run", pretrain=synthetic_pretrain()))
    lines = report.comparison.not_like_for_like
    assert [line.split(":")[0] for line in lines] == [
        "pretraining corpus",
        "tokenizer",
        "tokens per text",
        "concepts C",
        "hidden size D",
        "decoder context",
    ]
    assert lines[3] == "concepts C: 16 here, 128 in diffusion L2; compare normalised ranks only."


FULL = {
    "training": ("pretrain", synthetic_pretrain(), "pretrain"),
    "geometry": ("geometry", synthetic_geometry(), "analyze"),
    "ledger": ("ledger", synthetic_ledger(), "analyze"),
    "reading": ("reading", synthetic_reading(), "analyze"),
    "downstream": ("finetune", [STSB], "finetune"),
    "similarity": ("similarity", [synthetic_similarity()], "similarity"),
    "retrieval": ("retrieval", [synthetic_retrieval()], "retrieval"),
}


@pytest.mark.parametrize("kept", FULL)
def test_one_part_is_enough_and_the_others_are_named(kept, tmp_path):
    name, content, _ = FULL[kept]
    report = build_report(write_run(tmp_path / "run", **{name: content}))
    steps = " ".join(step.do for step in report.next_steps)
    page = render_markdown(report)
    assert set(report.missing) == set(FULL) - {kept}
    for part in report.missing:
        if (kept, part) == ("geometry", "ledger"):
            continue
        command = f"concept-encoder {FULL[part][2]} "
        assert PARTS[part].absent in report.verdict.findings
        assert command in PARTS[part].command
        assert command in steps
        assert command in page
    gates = {"geometry": ["PASS", "INCONCLUSIVE"], "downstream": ["INCONCLUSIVE", "PASS"]}
    assert verdicts_of(report, "gate_1") == gates.get(kept, ["INCONCLUSIVE", "INCONCLUSIVE"])
    strict = verdicts_of(report, "strict")
    assert strict[:2] == (["PASS", "PASS"] if kept == "ledger" else ["INCONCLUSIVE", "INCONCLUSIVE"])


def test_a_checkpoint_that_can_have_no_ledger_is_not_sent_for_one(tmp_path):
    report = build_report(write_run(tmp_path / "run", geometry=synthetic_geometry(), reading=synthetic_reading()))
    assert report.missing["ledger"].command is None
    assert not any("concept-encoder analyze" in step.do for step in report.next_steps)
    report.figures = []  # none was drawn
    for page in (render_markdown(report), render_html(report, tmp_path / "run")):
        section = page.partition("No ledger: the checkpoint holds no decoder of masked diffusion")[2][:250]
        assert section and "None" not in section and "To do so" not in section.partition("#")[0].partition("</p>")[0]


def test_one_step_names_a_command_once(tmp_path):
    report = build_report(write_run(tmp_path / "run", finetune=[STSB]))
    steps = [step.do for step in report.next_steps if "concept-encoder analyze" in step.do]
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("protocols", "decided"),
    [
        ({"reference": 0.8, "quick": 0.9}, "reference"),
        ({"tuned": 0.75, "reference": 0.2, "quick": 0.9}, "tuned"),
        ({"quick": 0.9}, "quick"),
    ],
)
def test_gates_take_the_best_justified_protocol(protocols, decided, tmp_path):
    runs = [
        synthetic_finetune("stsb", {"pearson": value}, {"pearson": 0.0}, 1500, protocol=name)
        for name, value in protocols.items()
    ]
    report = build_report(write_run(tmp_path / "run", finetune=runs))
    for gate_set, position in (("gate_1", 1), ("strict", 2)):
        (rows,) = [row.rows for row in report.gates if row.id == gate_set]
        assert rows[position].verdict == "PASS"
        assert rows[position].value == protocols[decided]
        assert rows[position].explanation.endswith(f"by downstream/stsb.{decided}/scores/pearson")


def test_strict_gate_compares_with_a_null_of_the_same_report(run):
    (rows,) = [row.rows for row in read_report(run).gates if row.id == "strict"]
    rank = rows[-1]
    assert (rank.threshold, rank.verdict) == (0.5 * 14.6, "PASS")
    assert rank.asks == ">= 0.5 × geometry/spectrum/views/within_centred/rankme/nulls/gaussian"


def test_ledger_holds_the_differences(run):
    ledger = read_report(run).ledger
    assert len(ledger.by_timestep) == 10
    for row in ledger.by_timestep:
        assert row.bits_shuffled == pytest.approx(row.shuffled_nll_bits - row.true_nll_bits)
        assert row.bits_null == pytest.approx(row.null_nll_bits - row.true_nll_bits)


@pytest.mark.parametrize(("bits", "noted"), [(0.84, False), (0.02, True)])
def test_bits_that_cannot_be_told_from_zero_are_not_divided(bits, noted, tmp_path):
    report = build_report(write_run(tmp_path / "run", ledger=synthetic_ledger(bits=bits)))
    assert (IGNORED in render_markdown(report)) == noted
    words = "cannot be shown to read the concepts" if noted else "beyond their template; 9 of 16 concepts carry 90 %"
    assert words in " ".join(report.verdict.findings)


def test_an_unmeasured_timestep_stays_unknown(tmp_path):
    ledger = synthetic_ledger()
    ledger.by_timestep[0] = replace(ledger.by_timestep[0], true_nll_bits=None, tokens=0)
    report = build_report(write_run(tmp_path / "run", ledger=ledger))
    assert report.ledger.by_timestep[0].bits_shuffled is None
    assert "| 0.05 | – |" in render_markdown(report)


def test_most_read_concepts_are_chosen(run):
    report = read_report(run)
    shares = [row.share_read for row in report.reading.most_read]
    assert shares == sorted(shares, reverse=True)
    (blocks,) = [section.blocks for section in sections(report) if section.id == "reading"]
    marked = [block for block in blocks if block.name == "marked"]
    assert [block.index for block in marked] == [row.index for row in report.reading.most_read[:6]]
    weights = report.reading.example.encoder_weights[marked[0].index]
    assert [words for _, _, words in marked[0].tokens] == [f"{weight:.3f}" for weight in weights]
    assert max(weight for block in marked for _, weight, _ in block.tokens) == 1


def test_reading_without_a_decoder(tmp_path):
    reading = synthetic_reading()
    for row in reading.concepts:
        row.share_read = row.read_by_entropy_bits = None
    reading.example.decoder_weights = None
    report = build_report(write_run(tmp_path / "run", reading=reading))
    assert [figure.id for figure in report.figures] == ["encoder_attention"]
    assert [row.index for row in report.reading.most_read] == list(range(16))


def test_controls_and_published_lines_stand_beside_a_score(run):
    report = read_report(run)
    task = next(task for task in report.downstream if task.id == "microworld_similarity.tuned")
    twin = task.primary.controls["random_init"]
    assert twin.value == pytest.approx(0.49)
    assert (twin.difference, twin.p_value) == (0.12, 0.012)
    assert twin.difference_interval == pytest.approx((0.09, 0.15))
    assert vars(task.selected) == {"learning_rate": 3e-4, "batch_size": 32, "epochs": 6}
    assert task.seeds == [0, 1, 2]
    drawn = FIGURES["scores"].data(report)["groups"]
    labels = next([row["label"] for row in group["rows"]] for group in drawn if "similarity.tuned" in group["label"])
    assert labels == ["this run", "other_run", "bag of tokens", "random-init twin", "BERT-Tiny"]
    for page in ("report.md", "report.html"):
        assert "not comparable" in (run / page).read_text(encoding="utf-8")


@pytest.mark.slow
def test_undefined_scores_and_differences_are_shown_as_such(tmp_path):
    task = with_controls(synthetic_finetune("stsb", {"pearson": None}, {"pearson": 0.0}, 1500), 0.1, 0.1)
    folder = write_run(tmp_path / "run", finetune=[task])
    report = write_report(folder)
    assert report.downstream[0].verdict == "at or below chance"
    assert "twin" not in " ".join(report.verdict.findings)


def test_frozen_scores_stand_beside_the_twin(run):
    (task,) = read_report(run).similarity
    rows = {(row.method, row.metric): row for row in task.rows}
    assert rows["cosine, mean whitened", "pearson"].value == pytest.approx(0.43)
    assert rows["cosine, mean whitened", "pearson"].random_init.value == pytest.approx(0.3)
    assert rows["linear probe", "pearson"].random_init.difference == 0.13
    assert rows["cosine, mean", "spearman"].value is None
    assert [row[1].text for row in table(read_report(run), "frozen")][:2] == ["cosine, mean"] * 2


def test_another_run_is_laid_beside(run, other):
    report = read_report(run)
    assert report.other.run.name == "other_run"
    assert report.other.other is None
    alone = build_report(other)
    alone.figures = []
    assert alone == report.other
    assert report.comparison.geometry.runs[:3] == ["this run", "other_run", "diffusion L2"]
    assert not (other / "report.json").exists()
    for page in ("report.md", "report.html"):
        text = (run / page).read_text(encoding="utf-8")
        assert text.count("other_run") + text.count("other\\_run") + text.count("other_<wbr>run") > 8
        assert "0.260 to 0.360" in text


@pytest.mark.slow
def test_runs_with_other_parts_lie_beside_each_other(tmp_path):
    one = write_run(tmp_path / "one", finetune=[STSB])
    two = write_run(tmp_path / "two", geometry=NOT_DRAWN, ledger=synthetic_ledger(concepts=4))
    for first, second in ((one, two), (two, one)):
        report = build_report(first, second)
        report.figures = []
        for page in (render_markdown(report), render_html(report, first)):
            assert f"with {second.name} and the reference runs" in page


def test_a_run_is_not_laid_beside_itself(tmp_path):
    folder = write_run(tmp_path / "run", finetune=[STSB])
    with pytest.raises(ValueError, match="the two runs to compare are the same folder"):
        build_report(folder, tmp_path / "run" / ".." / "run")


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"run folder .*nothing' does not exist; give the --output_dir"):
        build_report(tmp_path / "nothing")


def test_folder_without_results(tmp_path):
    with pytest.raises(ValueError, match=r"holds no results \(pretrain.json, geometry.json, ledger.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"geometry.json cannot be read as JSON: Expecting property name"),
        (
            '{"kind": "pretrain", "schema": 1}',
            r"geometry.json: kind must be 'geometry', got 'pretrain'; remove it and",
        ),
        ("[]", r"geometry.json must hold a JSON object, got \[\]; remove it and run `concept-encoder analyze` again"),
        ('{"kind": "geometry"}', "geometry.json: schema must be 1, got none, as older versions wrote it; remove it"),
        ('{"kind": "geometry", "schema": 1}', "geometry.json: checkpoint is missing; remove it and run `concept-enc"),
    ],
)
def test_bad_result_file(text, message, tmp_path):
    (tmp_path / "geometry.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["geometry.json"]


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
    assert len(page.sources) == 2 * len(FIGURES)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert {link.removeprefix("#") for link in page.links if link} <= page.ids
    assert "http" not in text.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in text
    assert text.index("could not be decided") < text.index("<h2>Training</h2>")


def test_html_escapes_what_it_is_given(tmp_path):
    folder = write_synthetic_run(tmp_path / "run", corpus=HOSTILE)
    report = build_report(folder)
    report.run.name = HOSTILE
    report.figures = []
    text = render_html(report, folder)
    page = Page(text)
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text


@pytest.mark.slow
def test_markdown_escapes_what_it_is_given(tmp_path):
    report = build_report(write_synthetic_run(tmp_path / "run", corpus=HOSTILE))
    text = render_markdown(report).partition("## Raw JSON")[0]
    page = Page(markdown.markdown(text, extensions=["tables"]))
    assert "script" not in page.tags


def test_a_command_of_a_next_step_can_be_copied():
    assert with_commands("Run `a --b_c x`, then *this*.") == "Run `a --b_c x`, then \\*this\\*."
    assert with_commands("a ` b_c") == "a \\` b\\_c"


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
    assert tables == 30
    html = markdown.markdown("\n".join(lines), extensions=["tables"])
    assert Page(html).tags.count("table") == tables


def test_markdown_names_the_figures_that_exist(run):
    text = (run / "report.md").read_text(encoding="utf-8")
    for name in FIGURES:
        assert f"](figures/{name}.png)" in text
        assert (run / "figures" / f"{name}.png").is_file()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Training",
        "Collapse",
        "Diversity",
        "Spectrum against its nulls",
        "Dimension use",
        "Concept ledger",
        "What concepts read",
        "Comparison with other\\_run and the reference runs",
        "Downstream",
        "Frozen concepts",
        "Retrieval",
        "Gates",
        "Next steps",
        "Raw JSON",
    ]


@pytest.mark.slow
def test_pages_come_from_the_json_alone(run):
    report = read_report(run)
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


@pytest.mark.slow
def test_command_prints_the_results(tmp_path, capsys):
    run = write_run(tmp_path / "run", finetune=[STSB])
    runpy.run_path(str(SCRIPT))["main"]([str(run)])
    printed, said = capsys.readouterr()
    assert printed.startswith("INCONCLUSIVE: Gate 1 of the reference: 1 of 2 gates could not be decided.")
    for words in ("tasks above chance", "chance 0.000  above chance", "gate_1: STS-B Pearson", "PASS"):
        assert words in printed
    assert f"Written to {run}: report.html, report.md, report.json." in said
    assert all((run / name).is_file() for name in ("report.html", "report.md", "report.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "pearson", "code"),
    [("gate_1", 0.8, 0), ("gate_1", 0.2, 1), ("gate_1", 0.7, 2), ("strict", 0.8, 2), ("strict", 0.2, 1)],
)
def test_exit_code_is_the_verdict_of_the_named_gate(gate, pearson, code, tmp_path):
    task = synthetic_finetune("stsb", {"pearson": pearson}, {"pearson": 0.0}, 1500)
    run = write_run(tmp_path / "run", geometry=NOT_DRAWN, finetune=[task])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))["main"]([str(run), "--gate", gate])
    assert stop.value.code == code


def test_unknown_gate_is_refused_with_the_known_ones(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))["main"]([str(tmp_path), "--gate", "loose"])
    assert stop.value.code == 2
    assert "gate_1" in capsys.readouterr().err


@pytest.mark.slow
def test_command_judges_the_reference(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))["main"](["--reference", str(tmp_path / "reference"), "--gate", "gate_1"])
    printed = capsys.readouterr().out
    assert stop.value.code == 1
    assert "The downstream scores cannot be told from chance: mrpc.reference, paws.reference" in printed
    assert "explains 1.9% of the variance" in printed
    assert (tmp_path / "reference" / "report.html").is_file()


def test_reference_is_not_written_over_a_run(tmp_path, capsys):
    run = write_run(tmp_path / "run", pretrain=synthetic_pretrain())
    before = (run / "pretrain.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))["main"](["--reference", str(run)])
    assert stop.value.code == 2
    assert "holds another run's pretrain.json; give a new folder" in capsys.readouterr().err
    assert (run / "pretrain.json").read_bytes() == before
    write_reference_run(tmp_path / "again")
    write_reference_run(tmp_path / "again")


def test_command_refuses_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))["main"]([str(tmp_path / "nothing")])
    assert stop.value.code == 2
    assert "does not exist; give the --output_dir of a pretraining run" in capsys.readouterr().err


def test_summary_table_has_no_empty_part(reference_report):
    assert summary_table(reference_report).count("chance 0.") == 6

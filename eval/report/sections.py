"""The sections of a report, each of blocks, from the results that it holds. Pages and cards render these."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.results import (
    Compared,
    ComparedTable,
    ControlScore,
    FinetuneResult,
    GateFacts,
    GeometryMetric,
    GeometryResult,
    LedgerResult,
    Nulls,
    PretrainResult,
    Report,
    RetrievalResult,
    SimilarityResult,
    Spectrum,
    names_of,
)
from ..metrics.chance import ABOVE_CHANCE, AT_CHANCE
from .blocks import (
    Block,
    Bullets,
    Cell,
    Column,
    Columns,
    Drawings,
    Folded,
    Heading,
    Marked,
    Paragraph,
    Section,
    Steps,
    Table,
    Tone,
    measured,
    number,
    pairs,
    score,
    scored,
    signed,
    span,
)
from .findings import read_reference
from .plots import METRIC_NAMES, NULL_MARKS

GROUPS = {"collapse": 8, "diversity": 4, "dimensions": 12}  # of the geometry's metrics, in their order
# What the output LayerNorm fixes; not graded, by no scale of the reference.
_NORM = "The output LayerNorm sets norms near √D."
_DEAD = "Behind the output LayerNorm a dimension collapses only when all concept vectors agree in it; 0 says little."
NOTES: dict[str, str] = {
    "isotropy": "The output LayerNorm takes one direction away, so the covariance is singular.",
    "collapsed_dimensions": _DEAD,
    "collapsed_dimensions_ratio": _DEAD,
    **dict.fromkeys(("mean_concept_norm", "std_concept_norm", "min_concept_norm", "max_concept_norm"), _NORM),
    "global_effective_rank": "Σσ/σ₁ of the uncentred mean over documents: the template, not what texts differ by. "
    "Gaussian noise of 128 x 512 scores 83. Not RankMe.",
    "effective_rank": "The same, of each batch's mean.",
    "mean_concept_similarity": "Of absolute cosines.",
    "uniformity_loss": "Without the logarithm of the paper.",
    "max_concept_similarity": "Mean over batches of the most similar pair of any document.",
}
IGNORED = "The bits cannot be told from 0, so how they divide over timesteps, positions and concepts means nothing."
CHOSEN_CONCEPTS = 6  # shown over the example text
FEW_CONCEPTS = 16  # rows of the reading table before the fold
CONTROL_LABELS = {
    "bag_of_tokens": "bag of tokens",
    "random_init": "random-init twin",
    "static_table": "token table",
    "shuffled_words": "shuffled words",
}
TONES: dict[str, Tone] = {"PASS": "good", "FAIL": "bad", "GOOD": "good", "POOR": "bad"}
SIGNS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?"}


def sections(report: Report) -> list[Section]:
    """Everything under the verdict, in the order of the page."""
    return [
        _training(report),
        *_geometry(report),
        _ledger(report),
        _reading(report),
        _comparison(report),
        _downstream(report),
        _frozen(report),
        _retrieval(report),
        Section("gates", "Gates", [_gate_table(row) for row in report.gates]),
        _next(report),
    ]


def missing(report: Report, part: Any) -> list[Block]:
    """What is said in place of a part that was not done."""
    found = report.missing[part]
    return [Paragraph(found.text, "missing", found.command)]


def drawings(report: Report, section: str) -> list[Block]:
    found = [figure for figure in report.figures if figure.section == section]
    return [Drawings(found)] if found else []


def verdict_cell(verdict: str) -> Cell:
    return Cell(verdict, tone=TONES.get(verdict, "middling"), strong=True)


def gate_verdicts(gates: Sequence[GateFacts]) -> list[Block]:
    """A table per set: what each gate says and why."""
    columns = (Column("gate"), Column("verdict"), Column("why", "note"))
    return [
        Table(
            columns,
            [(Cell(row.name), verdict_cell(row.verdict), Cell(row.explanation)) for row in gate_set.rows],
            Cell(gate_set.title, gate_set.headline),
            "stack scores",
        )
        for gate_set in gates
    ]


# ----------------------------------------------------------------------------------------------------------- training


def _training(report: Report) -> Section:
    if report.training is None:
        return Section("training", "Training", missing(report, "training"))
    blocks: list[Block] = [
        Columns(training_tables(report.training)),
        Paragraph(
            "The encoder saw the clean text, so the NELBO is a conditional (autoencoding) bound, not a language "
            "model's perplexity."
        ),
        *drawings(report, "training"),
    ]
    return Section("training", "Training", blocks)


def training_tables(run: PretrainResult) -> list[Table]:
    """Settings, objective and outcome."""
    model, training, evaluation = run.model, run.training, run.evaluation
    settings = [
        ("recipe", run.recipe),
        ("corpus", corpus_words(run.data.dataset_name)),
        ("tokens per text", run.data.max_length),
        ("concepts C", model.num_concepts),
        ("hidden size D", model.hidden_size),
        ("encoder layers", model.num_hidden_layers),
        ("decoder layers", model.decoder_num_hidden_layers),
        ("decoder context", model.decoder_context),
        ("parameters, whole model", run.parameters.total),
        ("parameters, encoder", run.parameters.encoder),
        ("steps", run.steps),
        ("epochs", run.epochs),
        ("texts per step", training.texts_per_step),
        ("learning rate", training.learning_rate),
        ("schedule", training.lr_scheduler_type),
        ("warm-up steps", training.warmup_steps),
        ("seed", training.seed),
    ]
    outcome = [
        ("training loss, first", run.train_loss[0]),
        ("training loss, last", run.train_loss[1]),
        ("evaluation loss, first", run.eval_loss[0]),
        ("evaluation loss, last", run.eval_loss[1]),
        ("conditional NELBO, bits per token", evaluation.nelbo_bits_per_token),
        ("its own task, bits per rebuilt token", evaluation.rebuilding and evaluation.rebuilding.bits_per_token),
        ("gradient norm, peak", run.grad_norm_peak),
        ("gradient norm, final", run.grad_norm_final),
        ("steps per second", run.steps_per_second),
        ("training time", duration(run.train_seconds)),
        ("tokens seen", run.tokens_seen),
    ]
    objective = [row for name, own in run.objective.items() for row in _flat(name, own)]
    return [
        pairs("Settings", [row for row in settings if row[1] is not None]),
        pairs("Outcome", [row for row in outcome if row[1] is not None]),
        *([pairs("Objective", objective)] if objective else []),
    ]


def corpus_words(name: str | None) -> str | None:
    """A data set as a page names it: what was on the author's disk is no name for anybody else."""
    return f"{Path(name).name}, the author's own" if name is not None and name.startswith("./") else name


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    """A setting that is not empty, or those of a mapping one by one."""
    if isinstance(value, Mapping):
        return [row for key, own in value.items() for row in _flat(f"{name}, {key}", own)]
    return [] if value in (None, "", []) else [(name, value)]


def duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


# ----------------------------------------------------------------------------------------------------------- geometry


def _geometry(report: Report) -> list[Section]:
    run, other = report.geometry, report.other.geometry if report.other else None
    if run is None:
        return [Section("collapse", "Collapse", missing(report, "geometry"))]
    corpus = (run.corpus and run.corpus.dataset_name) or "a corpus that is not recorded"
    about = (
        f"{run.num_concepts} concepts of width {run.hidden_size}, measured on {number(run.num_samples)} documents of "
        f"{corpus}. Grades are the reference's."
    )
    tables, start = {}, 0
    for group, count in GROUPS.items():
        names = names_of(GeometryMetric)[start : start + count]
        tables[group] = _metrics(run, report, other, [name for name in names if name in run.metrics])
        start += count
    return [
        Section("collapse", "Collapse", [Paragraph(about), tables["collapse"]]),
        Section("diversity", "Diversity", [Columns([tables["diversity"], *drawings(report, "diversity")])]),
        Section("spectrum", "Spectrum against its nulls", _spectrum(run, report, other), "Spectrum"),
        Section("dimensions", "Dimension use", [tables["dimensions"], *drawings(report, "dimensions")]),
    ]


def _beside(report: Report) -> list[Column]:
    """The column of another run, where there is one."""
    return [Column(report.other.run.name, "run")] if report.other else []


def _metrics(run: GeometryResult, report: Report, other: GeometryResult | None, names: Sequence[Any]) -> Table:
    columns = [Column("metric"), Column("value", "own"), *_beside(report), Column("grade"), Column("note", "note")]
    rows = []
    for name in names:
        cells = [Cell(name, code=True), Cell(number(run.metrics[name]))]
        if report.other:
            cells.append(Cell(number(other and other.metrics.get(name))))
        grade, note = run.grades.get(name), NOTES.get(name, "")
        if name in run.by_construction:
            said = f"{note} The reference would say {grade}." if grade else note
            rows.append([*cells, Cell("by construction", tone="plain"), Cell(said)])
        else:
            tag = Cell() if grade is None else Cell(grade, tone=TONES.get(grade, "middling"))
            rows.append([*cells, tag, Cell(note)])
    return Table(columns, rows)


def _spectrum(run: GeometryResult, report: Report, other: GeometryResult | None) -> list[Block]:
    blocks: list[Block] = []
    if run.spectrum is None:
        words = "The geometry file holds no spectrum with nulls and intervals. To add it:"
        blocks.append(Paragraph(words, "missing", "concept-encoder analyze RUN_DIR"))
    else:
        words = (
            f"Over {number(run.spectrum.num_documents)} documents. A figure says something only where it leaves its"
        )
        blocks.append(Paragraph(f"{words} nulls."))
    blocks += drawings(report, "spectrum")
    if run.spectrum is not None:
        blocks.append(_against_nulls(run.spectrum, report, other.spectrum if other else None))
    if run.singular_values:
        blocks.append(_leading_values(run))
    return blocks


def _against_nulls(spectrum: Spectrum, report: Report, other: Spectrum | None) -> Table:
    nulls = {name: label for name, (label, *_) in NULL_MARKS.items()}
    columns = [Column("view"), Column("figure"), Column("value", "own"), *_beside(report)]
    columns += [*(Column(label, "figure") for label in nulls.values()), Column("", "note")]
    figures = {
        (view.replace("_", ", "), METRIC_NAMES.get(name, name.replace("_", " "))): (
            row,
            other and other.views.get(view, {}).get(name),
        )
        for view, table in spectrum.views.items()
        for name, row in table.items()
    }
    if spectrum.content_share is not None:
        beside = other and other.content_share
        figures["share of the variance", "that depends on the text"] = spectrum.content_share, beside
    rows = []
    for (view, name), (row, beside) in figures.items():
        cells = [Cell(view), Cell(name), measured(row), *([measured(beside)] if report.other else [])]
        cells += [Cell(number(value, 3)) for value in _null_values(row.nulls, nulls)]
        rows.append([*cells, Cell("by construction" if row.by_construction else "")])
    return Table(columns, rows, layout="stack nulls", grouped=True)


def _null_values(nulls: Nulls, names: Iterable[str]) -> list[float | None]:
    return [getattr(nulls, name) for name in names]


def _leading_values(run: GeometryResult) -> Table:
    own, reference = run.singular_values, read_reference()["runs"][0]["singular_values"]
    columns = [Column(""), Column("this run", "own"), Column("share", "figure")]
    columns += [Column("reference", "figure"), Column("its share", "figure")]
    rows = []
    for i, value in enumerate(own[: len(reference)]):
        share = value / own[0] if own[0] else None
        cells = (number(value), score(share), number(reference[i]), score(reference[i] / reference[0]))
        rows.append([Cell(str(i + 1)), *map(Cell, cells)])
    return Table(columns, rows, Cell("Leading singular values and their share of the largest"), "")


# -------------------------------------------------------------------------------------------------- ledger and reading


def _ledger(report: Report) -> Section:
    run, other = report.ledger, report.other.ledger if report.other else None
    if run is None:
        return Section("ledger", "Concept ledger", missing(report, "ledger"), "Ledger")
    about = (
        "Bits per token that the decoder takes through the concepts: what the text costs with concepts that are not "
        "its own, less what it costs with its own. Null concepts are the template of all texts, and the figure "
        "against them is the one that counts; those of another text mislead the decoder, which costs more than "
        f"concepts carry. Over {number(run.num_documents)} documents and {number(run.tokens)} tokens."
    )
    rows = []
    for name, title in {"shuffled": "another text's concepts", "null": "null concepts"}.items():
        beside = [scored(other and getattr(other.bits_per_token, name))] if report.other else []
        rows.append([Cell(title), scored(getattr(run.bits_per_token, name)), *beside])
    carrying = [Cell(number(run.concepts_for_90_percent))]
    carrying += [Cell(number(other and other.concepts_for_90_percent))] if report.other else []
    rows.append([Cell("concepts that carry 90 % of the bits"), *carrying])
    blocks: list[Block] = [
        Paragraph(about),
        Table([Column("replaced by"), Column("bits per token", "own"), *_beside(report)], rows, layout=""),
    ]
    blocks += [] if run.is_read else [Paragraph(IGNORED, "caution")]
    blocks += [*drawings(report, "ledger"), Folded("The ledger in figures", [Columns(_ledger_tables(run))])]
    return Section("ledger", "Concept ledger", blocks, "Ledger")


def _ledger_tables(run: LedgerResult) -> list[Table]:
    titles = ("t", "own", "another's", "null", "saved", "tokens")
    by_timestep = [
        (
            number(row.timestep, 2),
            *map(score, (row.true_nll_bits, row.shuffled_nll_bits, row.null_nll_bits)),
            signed(row.bits_null),
            number(row.tokens),
        )
        for row in run.by_timestep
    ]
    by_position = [(f"{row.first}–{row.last}", signed(row.bits_null), number(row.tokens)) for row in run.by_position]
    lost = [(str(index), signed(value)) for index, value in enumerate(run.leave_one_out)]
    return [
        _figures("By timestep, bits per token", titles, by_timestep),
        _figures("By position, bits per token saved", ("tokens", "saved", "counted"), by_position),
        _figures("Bits per token lost without each concept", ("concept", "lost"), lost),
    ]


def _figures(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    columns = [Column(title, "figure") for title in titles]
    return Table(columns, [[Cell(text) for text in row] for row in rows], Cell(caption), "")


def _reading(report: Report) -> Section:
    run = report.reading
    if run is None:
        return Section("reading", "What concepts read", missing(report, "reading"), "Reading")
    concepts = run.most_read
    blocks: list[Block] = []
    if run.example:
        chosen = {row.index: run.example.encoder_weights[row.index] for row in concepts[:CHOSEN_CONCEPTS]}
        # The full mark is four times even reading at least, or that would look like much.
        strongest = max([4 / max(len(run.example.tokens), 1), *(share for row in chosen.values() for share in row)])
        blocks.append(
            Paragraph(
                f"One text, as the {len(chosen)} concepts see it that the decoder reads most. The stronger the mark, "
                "the larger the share of the concept's attention."
            )
        )
        blocks += [
            Marked(index, [(t, w / strongest, score(w)) for t, w in zip(run.example.tokens, row, strict=True)])
            for index, row in chosen.items()
        ]
    even = f", {number(run.uniform.entropy_bits, 3)} bits is reading every token alike" if run.uniform else ""
    columns = [Column("concept", "figure"), Column("share read", "figure"), Column("entropy, bits", "figure")]
    columns += [Column("mean position", "figure"), Column("top tokens and their share", "tokens")]
    rows = [
        [
            Cell(str(row.index)),
            *(Cell(number(value, 3)) for value in (row.share_read, row.entropy_bits, row.mean_position)),
            Cell(parts=[(token, number(share, 2)) for token, share in row.top_tokens]),
        ]
        for row in concepts
    ]
    blocks += [
        *drawings(report, "reading"),
        Heading("Top tokens of each concept"),
        Paragraph(
            "Concepts the decoder reads most come first. Entropy is that of the concept's attention over the tokens "
            f"of a text: 0 bits is one token{even}."
        ),
        Table(columns, rows[:FEW_CONCEPTS], layout="stack concepts"),
    ]
    rest = rows[FEW_CONCEPTS:]
    if rest:
        blocks.append(Folded(f"The other {len(rest)} concepts", [Table(columns, rest, layout="stack concepts")]))
    return Section("reading", "What concepts read", blocks, "Reading")


# --------------------------------------------------------------------------------------------------------- comparison


def _comparison(report: Report) -> Section:
    compared: Compared = report.comparison
    beside = f"{report.other.run.name} and " if report.other else ""
    blocks: list[Block] = []
    if compared.not_like_for_like:
        blocks.append(Bullets(compared.not_like_for_like, "Not like for like."))
    for title, table, extra in (
        ("Settings", compared.settings, None),
        ("Geometry", compared.geometry, "target"),
        ("Downstream", compared.downstream, "chance"),
    ):
        blocks += [_side_by_side(title, table, extra)] if table.rows else []
    blocks.append(Folded("About the reference figures", [Bullets(compared.notes)]))
    return Section("comparison", f"Comparison with {beside}the reference runs", blocks, "Comparison")


def _side_by_side(title: str, table: ComparedTable, extra: str | None) -> Table:
    columns = [Column(""), *([Column(extra, "figure")] if extra else [])]
    columns += [Column(run, "run" if i else "own") for i, run in enumerate(table.runs)]
    rows = [
        [Cell(row.id), *([Cell(number(row.beside))] if extra else []), *(Cell(number(value)) for value in row.values)]
        for row in table.rows
    ]
    return Table(columns, rows, Cell(title), "beside")


# --------------------------------------------------------------------------------------------------------- downstream


def score_blocks(tasks: Sequence[FinetuneResult], report: Report | None = None) -> list[Block]:
    """Every score after fine-tuning with what to compare it with; of another run too, where `report` has one."""
    about = (
        "After fine-tuning, on the split named. Chance is the score of not looking at the input; the twin has the "
        "same architecture and random weights, and was fine-tuned the same way; the bag is a linear model on word "
        "counts."
    )
    other = report and report.other
    beside = {task.id: task.scores for task in other.downstream} if other else {}
    columns = [Column("task, protocol"), Column("split"), Column("metric"), Column("score", "own")]
    columns += [Column("95 % interval", "figure"), *(_beside(report) if report else [])]
    columns += [Column(title, "figure") for title in ("chance", "twin", "bag")]
    columns += [Column("verdict"), Column("note", "note")]
    rows = []
    for task in tasks:
        for name, row in task.scores.items():
            cells = [Cell(f"{task.task}, {task.protocol}"), Cell(task.split), Cell(name), Cell(score(row.value))]
            cells += [Cell(span(row.interval)), *([scored(beside.get(task.id, {}).get(name))] if other else [])]
            controls = (_value(row.controls.get("random_init")), _value(row.controls.get("bag_of_tokens")))
            cells += [Cell(score(value)) for value in (row.chance, *controls)]
            tone: Tone = {ABOVE_CHANCE: "good", AT_CHANCE: "bad"}.get(row.verdict, "middling")  # type: ignore
            rows.append([*cells, Cell(row.verdict, tone=tone), Cell(row.note or "")])
    return [Paragraph(about), Table(columns, rows, layout="stack scores", grouped=True)]


def _value(control: ControlScore | None) -> float | None:
    return control.value if control else None


def _downstream(report: Report) -> Section:
    if not report.downstream:
        return Section("downstream", "Downstream", missing(report, "downstream"))
    tasks = report.downstream
    blocks = [*score_blocks(tasks, report), *drawings(report, "downstream")]
    if any(task.controls for task in tasks):
        blocks.append(_controls(tasks))
    else:
        words = "No control was scored with these: neither a bag of tokens nor a random-initialised twin."
        blocks.append(Paragraph(words, "missing"))
    same = _published(tasks, comparable=True)
    elsewhere = _published(tasks, comparable=False)
    if same.rows:
        blocks += [Heading("What others published, on this split"), same]
    if elsewhere.rows:
        title = f"{len(elsewhere.rows)} published scores on other splits, not comparable"
        blocks.append(Folded(title, [elsewhere]))
    blocks.append(_how(tasks))
    blocks += [_sweep(task) for task in tasks if task.sweep]
    return Section("downstream", "Downstream", blocks)


def _controls(tasks: Sequence[FinetuneResult]) -> Table:
    columns = [Column("task, protocol"), Column("metric"), Column("control"), Column("its score", "figure")]
    columns += [Column("its 95 % interval", "figure"), Column("run less control", "own")]
    columns += [Column("95 % interval", "figure"), Column("p", "figure")]
    rows = [
        [
            *map(Cell, (f"{task.task}, {task.protocol}", name, CONTROL_LABELS[control])),
            *map(Cell, (score(row.value), span(row.interval), signed(row.difference), span(row.difference_interval))),
            Cell(number(row.p_value, 2)),
        ]
        for task in tasks
        for name, own in task.scores.items()
        for control, row in own.controls.items()
    ]
    return Table(columns, rows, Cell("Controls: what the run adds to them"), "stack scores", grouped=True)


def _published(tasks: Sequence[FinetuneResult], comparable: bool) -> Table:
    columns = [Column("task, protocol"), Column("model"), Column("metric"), Column("score", "figure")]
    columns += [Column("parameters", "figure"), Column("split"), Column("source", "note")]
    rows = [
        [
            *map(Cell, (f"{task.task}, {task.protocol}", line.model, line.metric, score(line.score))),
            *map(Cell, (number(line.parameters), line.split)),
            Cell(f"{line.source}. {line.note}" if line.note else line.source),
        ]
        for task in tasks
        for line in task.published
        if line.comparable == comparable
    ]
    return Table(columns, rows, layout="stack scores", grouped=True)


def _how(tasks: Sequence[FinetuneResult]) -> Table:
    columns = [Column("task, protocol"), Column("split")]
    columns += [Column(title, "figure") for title in ("train", "scored", "epochs", "learning rate", "batch", "seeds")]
    columns += [Column("chance level", "note")]
    rows = [
        [
            Cell(f"{task.task}, {task.protocol}"),
            Cell(task.split),
            *(Cell(number(value)) for value in (task.train_examples, task.validation_examples)),
            *(
                Cell(number(value))
                for value in (task.selected.epochs, task.selected.learning_rate, task.selected.batch_size)
            ),
            Cell(", ".join(map(str, task.seeds)) or "–"),
            Cell(task.chance_rule),
        ]
        for task in tasks
    ]
    return Table(columns, rows, Cell("How it was scored"), "")


def _sweep(task: FinetuneResult) -> Block:
    metrics = list(dict.fromkeys(name for row in task.sweep for name in row.metrics))
    columns = [Column(title, "figure") for title in ("learning rate", "batch", "epochs", *metrics)]
    rows = [
        [
            *(Cell(number(value)) for value in (row.learning_rate, row.batch_size, row.epochs)),
            *(Cell(score(row.metrics.get(name))) for name in metrics),
        ]
        for row in task.sweep
    ]
    title = f"Sweep of {task.task}, {task.protocol}: {len(rows)} settings, scored on a split of train"
    return Folded(title, [Table(columns, rows, layout="")])


def frozen_table(tasks: Sequence[SimilarityResult], report: Report | None = None) -> Table:
    """Every score without fine-tuning; of another run too, where `report` has one."""
    other = report and report.other
    beside = {(task.task, row.id): row for task in other.similarity for row in task.rows} if other else {}
    columns = [Column("task"), Column("method"), Column("metric"), Column("score", "own")]
    columns += [Column("95 % interval", "figure"), *(_beside(report) if report else [])]
    columns += [Column("twin", "figure"), Column("run less twin", "own"), Column("95 % interval", "figure")]
    rows = []
    for task in tasks:
        for row in task.rows:
            twin = row.random_init
            cells = [*map(Cell, (task.task, row.method, row.metric, score(row.value), span(row.interval)))]
            cells += [scored(beside.get((task.task, row.id)))] if other else []
            cells += [Cell(score(_value(twin))), Cell(signed(twin.difference if twin else None))]
            rows.append([*cells, Cell(span(twin.difference_interval if twin else None))])
    return Table(columns, rows, layout="stack scores", grouped=True)


def _frozen(report: Report) -> Section:
    if not report.similarity:
        return Section("frozen", "Frozen concepts", missing(report, "similarity"))
    words = "Without fine-tuning: the cosine of two texts' concepts, and a linear probe on frozen concepts."
    blocks: list[Block] = [Paragraph(words), frozen_table(report.similarity, report)]
    probes = dict.fromkeys(
        task.methods["linear probe"] for task in report.similarity if "linear probe" in task.methods
    )
    blocks += [Paragraph(f"Probe: {words}.") for words in probes]
    return Section("frozen", "Frozen concepts", blocks)


def retrieval_blocks(results: Sequence[RetrievalResult], report: Report | None = None) -> list[Block]:
    """Every ranker of every task with what the run has more than it; of another run too, where `report` has one."""
    other = report and report.other
    beside = {task.task: {row.ranker: row for row in task.rows} for task in other.retrieval} if other else {}
    columns = [Column("task"), Column("ranker"), Column("nDCG@10", "own"), Column("95 % interval", "figure")]
    columns += _beside(report) if report else []
    columns += [Column(title, "figure") for title in ("recall@100", "MRR@10")]
    columns += [Column("run less it, nDCG@10", "own"), Column("95 % interval", "figure")]
    columns += [Column("bytes a text", "figure"), Column("documents/s", "figure"), Column("what it is", "note")]
    rows, facts = [], []
    for task in results:
        said = f"{number(task.documents)} documents of {number(task.words_per_document, 3)} words on average (longest "
        said += f"{number(task.longest_document)}), {number(task.queries)} queries; {task.verdict}"
        facts.append(f"{task.task}: {said}: a random order has {score(task.chance[task.primary_metric])}.")
        for row in task.rows:
            own, name = row.scores[task.primary_metric], row.ranker.replace("_", " ")
            cells = [*map(Cell, (task.task, name, score(own.value), span(own.interval)))]
            theirs = beside.get(task.task, {}).get(row.ranker)
            cells += [scored(theirs.scores[task.primary_metric] if theirs else None)] if other else []
            cells += [Cell(score(_value(row.scores.get(metric)))) for metric in ("recall_at_100", "mrr_at_10")]
            cells += [Cell(signed(own.difference)), Cell(span(own.difference_interval))]
            speed = task.documents / row.seconds if row.seconds else None
            cells += [Cell(number(row.bytes_per_text)), Cell(number(speed, 3)), Cell(row.description)]
            rows.append(cells)
    about = (
        "Exact search without fine-tuning; intervals and differences over queries, paired. The speed is that of "
        "reading the documents on the machine of the run, once for all rankers that read them alike."
    )
    return [Paragraph(about), Table(columns, rows, layout="stack scores", grouped=True), Bullets(facts)]


def _retrieval(report: Report) -> Section:
    if not report.retrieval:
        return Section("retrieval", "Retrieval", missing(report, "retrieval"))
    return Section("retrieval", "Retrieval", retrieval_blocks(report.retrieval, report))


# ------------------------------------------------------------------------------------------------ gates and next steps


def _gate_table(gate_set: GateFacts) -> Table:
    columns = [Column("gate"), Column("asks"), Column("found", "own"), Column("verdict"), Column("why", "note")]
    rows = [
        [
            Cell(row.name, row.metric),
            Cell(row.asks),
            measured(row),
            verdict_cell(row.verdict),
            Cell(f"{row.reason} Source: {row.source}."),
        ]
        for row in gate_set.rows
    ]
    return Table(columns, rows, Cell(gate_set.title, gate_set.headline), "stack scores")


def _next(report: Report) -> Section:
    lines = [(step.because, step.do) for step in report.next_steps]
    nothing = Paragraph("No rule asks for a next step.", "")
    return Section("next", "Next steps", [Steps(lines) if lines else nothing])

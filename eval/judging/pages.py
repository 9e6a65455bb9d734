"""The pages of what the judge found, of the same blocks and templates as a run's report."""

from collections.abc import Sequence

from ...utils.results import GateFacts, JudgedRecord, JudgedTask, JudgeResult, Tile
from ..report.blocks import Block, Cell, Column, Paragraph, Section, Table, between, number, pairs, score, signed, span
from ..report.pages import html_page, markdown_page, page_context
from ..report.sections import CONTROL_LABELS, verdict_cell

GEOMETRY = ("crowding", "rank", "strongest_dimension", "dead_dimensions", "same_inside", "duplicates")


def render_judged_markdown(result: JudgeResult) -> str:
    return markdown_page(**_context(result))


def render_judged_html(result: JudgeResult) -> str:
    return html_page({}, **_context(result))


def _context(result: JudgeResult) -> dict:
    return page_context(
        result,
        {name: value for name, value in result.as_dict().items() if name != "other"},
        title=result.name,
        eyebrow="An encoder, judged" if result.model else "Scores, judged",
        beside=result.other.name if result.other else None,
        summary=summary(result),
        parts=judged_sections(result),
        file="judge.json",
    )


def summary(result: JudgeResult) -> list[Tile]:
    """The handful of figures at the top."""
    tiles = [
        Tile(id=f"{task.id}, {task.primary_metric}", value=each.value, detail=f"{span(each.interval)}; chance 0")
        for task in result.tasks
        for each in [task.scores[task.primary_metric]]
    ]
    rows = [row for gates in result.gates for row in gates.rows]
    passed = sum(row.verdict == "PASS" for row in rows)
    return [*tiles, Tile(id="gates passed", value=passed, detail=f"of {len(rows)} that apply")]


def judged_sections(result: JudgeResult) -> list[Section]:
    """Everything under the verdict, in the order of the page."""
    parts = []
    if result.model is not None:
        parts += [
            Section("model", "Model", _models(result)),
            Section("scores", "Scores", [*map(scores_table, result.tasks), *_against(result)]),
            Section("geometry", "Geometry", [geometry_table(result)]),
        ]
    if result.records:
        parts.append(Section("records", "Scores that were handed in", [records_table(result.records)]))
    if result.other is not None:
        title = f"Gates, of {result.other.name}"
        parts.append(Section("other", title, [*map(gates_table, result.other.gates)], label="The other's gates"))
    told = [name for name, check in result.checks.items() if not check.fault]
    blocks: list[Block] = [*map(gates_table, result.gates)]
    if told:
        rows = [(Cell(name.replace("_", " ")), _figure(result, name), Cell(result.checks[name].what)) for name in told]
        columns = (Column("told, without a gate"), Column("figure", "figure"), Column("measures", "note"))
        blocks.append(Table(columns, rows))
    if result.skipped:
        blocks.append(Paragraph(f"Do not apply to this model: {', '.join(result.skipped).replace('_', ' ')}."))
    return [*parts, Section("gates", "Gates", blocks)]


def _models(result: JudgeResult) -> list[Block]:
    found: list[Block] = []
    for each in (result, result.other):
        if each is not None and each.model is not None:
            model = each.model
            rows = [
                ("commit on the Hub", model.revision),
                ("digest of the weights", model.digest),
                ("parameters", model.parameters),
                ("numbers of a vector", model.dimensions),
                ("pairs compared by", model.compared_by),
                ("tokens it says it reads", model.max_length),
                ("words it reads, by trial", model.words_read),
                ("verdict", each.verdict.overall),
            ]
            found.append(pairs(model.name, rows))
    return found


def scores_table(task: JudgedTask) -> Table:
    """A task's score, chance and controls, a row each."""
    rows: list[Sequence[Cell]] = []
    for metric, own in task.scores.items():
        rows.append(
            (
                Cell(metric),
                Cell("the model", strong=True),
                Cell(score(own.value)),
                Cell(span(own.interval)),
                Cell(),
                Cell(),
            )
        )
        rows.append((Cell(metric), Cell("chance"), Cell(score(own.chance)), Cell(), Cell(), Cell()))
        for name, control in own.controls.items():
            cells = map(
                Cell,
                (
                    score(control.value),
                    span(control.interval),
                    signed(control.difference),
                    span(control.difference_interval),
                ),
            )
            rows.append((Cell(metric), Cell(CONTROL_LABELS[name]), *cells))
    columns = (
        Column("metric"),
        Column("what"),
        Column("score", "figure"),
        Column("95 % interval", "figure"),
        Column("the model less it", "figure"),
        Column("95 % interval", "figure"),
    )
    return Table(columns, rows, Cell(f"{task.id}, {task.examples} pairs"), "stack scores", grouped=True)


def _against(result: JudgeResult) -> list[Block]:
    if result.other is None or not result.against:
        return []
    rows = [
        (
            Cell(f"{each.task}, {each.metric}"),
            Cell(signed(each.difference)),
            Cell(span(each.interval)),
            Cell(number(each.p_value)),
        )
        for each in result.against
    ]
    columns = (
        Column("task"),
        Column("difference", "figure"),
        Column("95 % interval", "figure"),
        Column("p", "figure"),
    )
    return [Table(columns, rows, Cell(f"{result.name} less {result.other.name}, the same pairs"))]


def geometry_table(result: JudgeResult) -> Table:
    rows = []
    for name in GEOMETRY:
        if name in result.checks:
            nulls = result.nulls.get(name)
            beside = ("–", "–") if nulls is None else (number(nulls.gaussian), number(nulls.random_encoder))
            what = Cell(name.replace("_", " "), result.checks[name].what)
            rows.append((what, _figure(result, name), *map(Cell, beside)))
    columns = (
        Column("figure"),
        Column("value", "own"),
        Column("Gaussian noise", "figure"),
        Column("random weights", "figure"),
    )
    return Table(columns, rows)


def gates_table(gates: GateFacts) -> Table:
    """Each gate: what it asks, what was found, and why it asks it."""
    rows = [
        (
            Cell(row.name),
            verdict_cell(row.verdict),
            Cell(number(row.value), between(row.interval)),
            Cell(row.asks),
            Cell(row.reason),
        )
        for row in gates.rows
    ]
    columns = (
        Column("gate"),
        Column("verdict"),
        Column("found", "figure"),
        Column("asked", "figure"),
        Column("reason", "note"),
    )
    return Table(columns, rows, Cell(gates.title, gates.headline), "stack scores")


def records_table(records: Sequence[JudgedRecord]) -> Table:
    """Scores that were handed in, each with chance, interval and what is wrong."""
    rows = []
    for record in records:
        beside = [
            f"{name.replace('_', ' ')}: {signed(each.value)}, {span(each.interval)}"
            for name, each in record.against.items()
        ]
        said = " ".join(record.notes.values()) or "nothing against it"
        rows.append(
            (
                Cell(record.id, record.metric),
                Cell(score(record.score)),
                Cell(span(record.interval), record.interval_rule or ""),
                Cell(score(record.chance), record.chance_rule or ""),
                Cell(record.verdict),
                Cell(" ".join([said, *beside])),
            )
        )
    columns = (
        Column("score"),
        Column("value", "figure"),
        Column("95 % interval", "figure"),
        Column("chance", "figure"),
        Column("verdict"),
        Column("said of it", "note"),
    )
    return Table(columns, rows)


def _figure(result: JudgeResult, name: str) -> Cell:
    check = result.checks[name]
    return Cell(number(check.value), between(check.interval))

"""Gates as data: a figure of the report, a threshold, a verdict. Rows are in gates.yaml; this module applies them."""

import dataclasses
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from ...utils.results import Comparison, GateRow, Report, Result, Verdict, names_of
from ...utils.untrusted import read_yaml

GATES_FILE = Path(__file__).parent / "gates.yaml"
COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}

EXIT_CODES: dict[Verdict, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}


@dataclass(frozen=True)
class Share:
    """A threshold that is a share of another figure of the same report, such as a null.

    Attributes:
        metric: path of the figure, as in `Gate`.
        factor: what the figure is multiplied by.
    """

    metric: str
    factor: float


@dataclass(frozen=True)
class Gate:
    """One requirement on a report.

    Attributes:
        name: what the report calls it.
        metrics: paths into the report, names separated by "/"; in a list, the item whose `id` equals the name. The
            first path that the report has decides.
        comparison: ">", ">=", "<" or "<=".
        threshold: in the metric's own unit, or a share of another figure.
        reason: why this metric and this threshold.
        source: who set the threshold.
    """

    name: str
    metrics: Sequence[str]
    comparison: Comparison
    threshold: float | Share
    reason: str
    source: str

    def __post_init__(self) -> None:
        metric = self.threshold.metric if isinstance(self.threshold, Share) else ""
        for name, value in (("comparison", self.comparison), ("name", self.name), ("threshold metric", metric)):
            if not isinstance(value, str):
                raise ValueError(f"gate {self.name!r}: {name} must be text, got {value!r}")
        is_list = isinstance(self.metrics, list | tuple) and len(self.metrics) > 0
        if not is_list or not all(isinstance(path, str) for path in self.metrics):
            raise ValueError(f"gate {self.name!r}: metrics must be a list of paths, got {self.metrics!r}")
        if self.comparison not in COMPARISONS:
            raise ValueError(
                f"gate {self.name!r}: comparison must be one of {', '.join(COMPARISONS)}, got {self.comparison!r}"
            )
        number = self.threshold.factor if isinstance(self.threshold, Share) else self.threshold
        if not _is_number(number):
            raise ValueError(
                f"gate {self.name!r}: threshold must be a finite number or {{metric: path, factor: finite number}}, "
                f"got {number!r}"
            )


@dataclass(frozen=True)
class GateSet:
    """Gates that are judged together.

    Attributes:
        name: how a command line calls it.
        title: how a report calls it.
        gates: at least one.
        data: what `data` of the training says of the runs that the set is for; empty: of all that have no set of
            their own.
    """

    name: str
    title: str
    gates: Sequence[Gate]
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GateResult:
    """What a gate says about a report.

    Attributes:
        gate: the requirement.
        metric: the path that decided, the first of the gate's when the report has none of them.
        threshold: as a number, None when it is a share of a figure that the report lacks.
        value: the figure, None when the report has none.
        interval: (low, high) around the figure, None when the report has none.
        verdict: PASS, FAIL or INCONCLUSIVE.
        explanation: the verdict in words.
    """

    gate: Gate
    metric: str
    threshold: float | None
    value: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    explanation: str

    def as_row(self) -> GateRow:
        """The result as a report holds it; `asks` is the requirement in words."""
        return GateRow(
            name=self.gate.name,
            metric=self.metric,
            comparison=self.gate.comparison,
            threshold=self.threshold,
            asks=_asks(self.gate),
            value=self.value,
            interval=self.interval,
            verdict=self.verdict,
            explanation=self.explanation,
            reason=self.gate.reason,
            source=self.gate.source,
        )


def load_gates(path: Path = GATES_FILE, kind: type[Result] = Report) -> dict[str, GateSet]:
    """Sets of gates of a YAML file (JSON is YAML too), by name, in the file's order. The file's head says its form.

    Args:
        path: of the file.
        kind: of the results that the paths lead into.

    Raises:
        ValueError: not YAML, no sets, a set without title or gates, a field missing or unknown, a bad metrics,
            comparison or threshold, a path that no report has, a name used twice in a set.
    """
    content = read_yaml(path)
    sets = content.get("sets") if isinstance(content, dict) else None
    if not isinstance(sets, dict) or not sets:
        raise ValueError(f"{path.name} must hold named sets of gates under the key 'sets'")
    return {str(name): _gate_set(f"{path.name}, set {name!r}", str(name), row, kind) for name, row in sets.items()}


def _gate_set(where: str, name: str, row: Any, kind: type[Result]) -> GateSet:
    _check_fields(where, row, {"title", "gates"}, {"data"})
    data = row.get("data", {})
    if not isinstance(data, dict) or not all(isinstance(each, str) for each in (*data, *data.values())):
        raise ValueError(f"{where}: data must map names of fields to texts, got {data!r}")
    if not isinstance(row["gates"], list) or not row["gates"]:
        raise ValueError(f"{where}: gates must be a list of at least one gate, got {row['gates']!r}")
    fields = {each.name for each in dataclasses.fields(Gate)}
    gates = []
    for number, gate in enumerate(row["gates"], start=1):
        _check_fields(f"{where}, gate {number}", gate, fields)
        threshold = gate["threshold"]
        if isinstance(threshold, dict):
            _check_fields(f"{where}, gate {number}, threshold", threshold, {"metric", "factor"})
            threshold = Share(**threshold)
        made = Gate(**{**gate, "threshold": threshold})
        for metric in [*made.metrics, *([threshold.metric] if isinstance(threshold, Share) else [])]:
            _check_path(f"{where}, gate {number}", metric, kind)
        gates.append(made)
    names = [gate.name for gate in gates]
    twice = sorted({gate for gate in names if names.count(gate) > 1})
    if twice:
        raise ValueError(f"{where} uses a gate name twice: {', '.join(twice)}")
    return GateSet(name, str(row["title"]), gates, data)


def sets_for(report: Report, sets: Mapping[str, GateSet]) -> dict[str, GateSet]:
    """Those that a run is judged by: of its data alone, or else all that are of any."""
    facts = report.training and report.training.data
    data = {"dataset_name": facts.dataset_name, **facts.more} if facts else {}
    own = {name: each for name, each in sets.items() if each.data and each.data.items() <= data.items()}
    return own or {name: each for name, each in sets.items() if not each.data}


def _check_fields(where: str, row: Any, fields: set[str], optional: Collection[str] = ()) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be a mapping with {', '.join(sorted(fields))}, got {row!r}")
    known = fields.union(optional)
    problems = [f"lacks {name}" for name in sorted(fields - set(row))]
    problems += [f"has the unknown field {name!r}" for name in sorted(map(str, set(row) - known))]
    if problems:
        raise ValueError(f"{where} {'; '.join(problems)}. The fields are: {', '.join(sorted(known))}")


def _check_path(where: str, path: str, kind: Any) -> None:
    """ValueError with the legal set where a path leads to what no result of a kind can have, or to no figure."""
    walked: list[str] = []
    for name in path.split("/"):
        here = "/".join(walked) or "a report"
        legal: Collection[str] | None = None
        if dataclasses.is_dataclass(kind):
            fields = get_type_hints(kind, include_extras=True)
            legal = [field.name for field in dataclasses.fields(kind) if field.name != "folder"]
            kind = fields.get(name)
        elif get_origin(kind) is dict:
            key, kind = get_args(kind)
            legal = names_of(key) or None
        elif get_origin(kind) is list and dataclasses.is_dataclass(get_args(kind)[0]):
            (kind,) = get_args(kind)  # names of tasks and methods; a user may add some
        else:
            raise ValueError(f"{where}: metric {path!r} continues after {here}, which is a figure")
        if legal is not None and name not in legal:
            raise ValueError(f"{where}: metric {path!r}: {here} has no {name!r}; it has {', '.join(legal)}")
        kind = _without_none(kind)
        walked.append(name)
    if kind not in (int, float) and "value" not in getattr(kind, "__dataclass_fields__", ()):
        raise ValueError(f"{where}: metric {path!r} is not a figure; name one inside it")


def _without_none(kind: Any) -> Any:
    """A type without `None` and without what it is annotated with."""
    if get_origin(kind) in (UnionType, Union):
        kind = next(each for each in get_args(kind) if each is not type(None))
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def check_gates(report: Result | Mapping[str, Any], gates: Sequence[Gate]) -> list[GateResult]:
    """Apply gates to a report.

    A metric is a number, or an object with `value` and perhaps `interval` (low, high). With an interval the verdict
    is for all of it: PASS when all of it satisfies the gate, FAIL when none of it does, INCONCLUSIVE otherwise.
    Without one the value decides. A metric or a threshold that is missing or null is INCONCLUSIVE.

    Args:
        report: as from `report.build_report`, or another result that the paths lead into.
        gates: requirements, in the order of the result.

    Returns:
        One result per gate.

    Raises:
        ValueError: a path leads to something that is neither a number, null nor such an object.
    """
    return [_check(report, gate) for gate in gates]


def overall_verdict(results: Sequence[GateResult]) -> Verdict:
    """FAIL when any gate fails, else INCONCLUSIVE when any is, else PASS.

    Raises:
        ValueError: no results, which would pass everything.
    """
    if not results:
        raise ValueError("there are no gate results to judge; give at least one gate")
    verdicts = {result.verdict for result in results}
    if "FAIL" in verdicts:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"


def _check(report: Result | Mapping[str, Any], gate: Gate) -> GateResult:
    found = [find_in_report(report, path) for path in gate.metrics]
    metric, node, missing = next((entry for entry in found if not entry[2]), found[0])
    if missing:
        words = f"{missing}, nor anything that could stand in for it" if len(gate.metrics) > 1 else missing
        return GateResult(gate, metric, None, None, None, "INCONCLUSIVE", words)
    value, interval = _figure(node, gate, metric)
    if value is None:
        return GateResult(gate, metric, None, None, None, "INCONCLUSIVE", f"{metric} is null: it was not measured")
    threshold, missing = _threshold(report, gate)
    if threshold is None:
        return GateResult(gate, metric, None, value, interval, "INCONCLUSIVE", f"no threshold: {missing}")
    verdict, words = _judge(gate.comparison, threshold, value, interval)
    if len(gate.metrics) > 1:
        words += f", by {metric}"
    return GateResult(gate, metric, threshold, value, interval, verdict, words)


def _judge(
    comparison: str, threshold: float, value: float, interval: tuple[float, float] | None
) -> tuple[Verdict, str]:
    satisfies = COMPARISONS[comparison]
    wanted = f"{comparison} {threshold:.4g}"
    if interval is None:
        if satisfies(value, threshold):
            return "PASS", f"{value:.4g} is {wanted}; no interval"
        return "FAIL", f"{value:.4g} is not {wanted}; no interval"
    # The end of the interval that is hardest to satisfy, then the easiest.
    hardest, easiest = interval if comparison.startswith(">") else reversed(interval)
    described = f"the interval [{interval[0]:.4g}, {interval[1]:.4g}]"
    if satisfies(hardest, threshold):
        return "PASS", f"all of {described} is {wanted}"
    if not satisfies(easiest, threshold):
        return "FAIL", f"none of {described} is {wanted}"
    return "INCONCLUSIVE", f"only a part of {described} is {wanted}"


def _threshold(report: Result | Mapping[str, Any], gate: Gate) -> tuple[float | None, str]:
    """The threshold as a number, or None and what is missing in words."""
    if not isinstance(gate.threshold, Share):
        return gate.threshold, ""
    _, node, missing = find_in_report(report, gate.threshold.metric)
    if missing:
        return None, missing
    value, _ = _figure(node, gate, gate.threshold.metric)
    if value is None:
        return None, f"{gate.threshold.metric} is null: it was not measured"
    return gate.threshold.factor * value, ""


def _asks(gate: Gate) -> str:
    if isinstance(gate.threshold, Share):
        return f"{gate.comparison} {gate.threshold.factor:.4g} × {gate.threshold.metric}"
    return f"{gate.comparison} {gate.threshold:.4g}"


def find_in_report(report: Any, path: str) -> tuple[str, Any, str | None]:
    """A path of gates.yaml with ids as the report has them, and the node there, or what is missing in words."""
    node = report
    walked: list[str] = []
    for key in path.split("/"):
        here = "/".join(walked) or "the report"
        if node is None:
            return path, None, f"{here} was not measured"
        if isinstance(node, list):
            items: Mapping[str, Any] = {item.id: item for item in node if hasattr(item, "id")}
            key = _only_replaced(items, key)
        else:
            items = node if isinstance(node, Mapping) else getattr(node, "__dict__", {})
        if key not in items:
            return path, None, f"{here} has no {key!r}"
        node = items[key]
        walked.append(key)
    return "/".join(walked), node, None


def _only_replaced(ids: Collection[str], wanted: str) -> str:
    """The id itself if it is there or several have it with values replaced: scores must not choose between them."""
    replaced = [name for name in ids if name.startswith(f"{wanted}+")]
    return replaced[0] if wanted not in ids and len(replaced) == 1 else wanted


def _figure(node: Any, gate: Gate, metric: str) -> tuple[float | None, tuple[float, float] | None]:
    interval = None
    if hasattr(node, "value"):
        node, interval = node.value, getattr(node, "interval", None)
    if node is None:
        return None, None
    if not _is_number(node):
        raise ValueError(
            f"gate {gate.name!r}: metric {metric!r} leads to {type(node).__name__}, not to a finite number; "
            f"name a figure of the report"
        )
    if interval is None:
        return float(node), None
    ordered = isinstance(interval, Sequence) and len(interval) == 2 and all(map(_is_number, interval))
    if not ordered or interval[0] > interval[1]:
        raise ValueError(f"gate {gate.name!r}: interval of {metric!r} must be [low, high], got {interval!r}")
    return float(node), (float(interval[0]), float(interval[1]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Gates as data: a figure of the report, a threshold, a verdict. Rows lie in gates.yaml, this module applies them."""

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

GATES_FILE = Path(__file__).parent / "gates.yaml"
COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
EXIT_CODES: dict[Verdict, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}


@dataclass(frozen=True)
class Gate:
    """One requirement on a report.

    Attributes:
        name: what the report calls it.
        metric: path into the report, keys separated by "/"; in a list of dicts, the item whose "id" equals the key.
        comparison: ">", ">=", "<" or "<=".
        threshold: in the metric's own unit.
        reason: why this metric and this threshold.
        source: who set the threshold.
    """

    name: str
    metric: str
    comparison: str
    threshold: float
    reason: str
    source: str

    def __post_init__(self) -> None:
        if self.comparison not in COMPARISONS:
            raise ValueError(
                f"gate {self.name!r}: comparison must be one of {', '.join(COMPARISONS)}, got {self.comparison!r}"
            )
        if not _is_number(self.threshold):
            raise ValueError(f"gate {self.name!r}: threshold must be a finite number, got {self.threshold!r}")


@dataclass(frozen=True)
class GateResult:
    """What a gate says about a report.

    Attributes:
        gate: the requirement.
        value: the figure, None when the report has none.
        interval: (low, high) around the figure, None when the report has none.
        verdict: PASS, FAIL or INCONCLUSIVE.
        explanation: the verdict in words.
    """

    gate: Gate
    value: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    explanation: str

    def as_row(self) -> dict[str, Any]:
        """The result as one flat JSON object."""
        row = dataclasses.asdict(self.gate)
        row.update(value=self.value, interval=list(self.interval) if self.interval else None)
        return {**row, "verdict": self.verdict, "explanation": self.explanation}


def load_gates(path: Path = GATES_FILE) -> list[Gate]:
    """Gates of a YAML file (JSON is YAML too): a list under the key `gates`, fields as in `Gate`.

    Raises:
        ValueError: not YAML, no list of gates, a field missing or unknown, a bad comparison or threshold,
            a name used twice.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {error}") from error
    rows = content.get("gates") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name} must hold a list of gates under the key 'gates', each a mapping")
    fields = {field.name for field in dataclasses.fields(Gate)}
    for number, row in enumerate(rows, start=1):
        problems = [f"lacks {name}" for name in sorted(fields - set(row))]
        problems += [f"has the unknown field {name!r}" for name in sorted(map(str, set(row) - fields))]
        if problems:
            known = ", ".join(field.name for field in dataclasses.fields(Gate))
            raise ValueError(f"{path.name}, gate {number} {'; '.join(problems)}. The fields are: {known}")
    gates = [Gate(**row) for row in rows]
    names = [gate.name for gate in gates]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name} uses a gate name twice: {', '.join(twice)}")
    return gates


def check_gates(report: Mapping[str, Any], gates: Sequence[Gate]) -> list[GateResult]:
    """Apply gates to a report.

    A metric is a number, or an object with `value` and perhaps `interval` [low, high]. With an interval the verdict
    holds for all of it: PASS when all of it satisfies the gate, FAIL when none of it does, INCONCLUSIVE otherwise.
    Without one the value decides. A metric that is missing or null is INCONCLUSIVE.

    Args:
        report: as from `report.build_report`.
        gates: requirements, in the order of the result.

    Returns:
        One result per gate.

    Raises:
        ValueError: a metric path leads to something that is neither a number, null nor such an object.
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


def exit_code(results: Sequence[GateResult]) -> int:
    """Process exit status of the overall verdict: 0 PASS, 1 FAIL, 2 INCONCLUSIVE."""
    return EXIT_CODES[overall_verdict(results)]


def _check(report: Mapping[str, Any], gate: Gate) -> GateResult:
    node, missing = _find(report, gate.metric)
    if missing:
        return GateResult(gate, None, None, "INCONCLUSIVE", missing)
    value, interval = _figure(node, gate)
    if value is None:
        return GateResult(gate, None, None, "INCONCLUSIVE", f"{gate.metric} is null: it was not measured")
    satisfies = COMPARISONS[gate.comparison]
    wanted = f"{gate.comparison} {gate.threshold:.4g}"
    if interval is None:
        if satisfies(value, gate.threshold):
            return GateResult(gate, value, None, "PASS", f"{value:.4g} is {wanted}; no interval")
        return GateResult(gate, value, None, "FAIL", f"{value:.4g} is not {wanted}; no interval")
    # The end of the interval that is hardest to satisfy, then the easiest.
    hardest, easiest = interval if gate.comparison.startswith(">") else reversed(interval)
    described = f"the interval [{interval[0]:.4g}, {interval[1]:.4g}]"
    if satisfies(hardest, gate.threshold):
        return GateResult(gate, value, interval, "PASS", f"all of {described} is {wanted}")
    if not satisfies(easiest, gate.threshold):
        return GateResult(gate, value, interval, "FAIL", f"none of {described} is {wanted}")
    return GateResult(gate, value, interval, "INCONCLUSIVE", f"only a part of {described} is {wanted}")


def _find(report: Any, path: str) -> tuple[Any, str | None]:
    """The node at `path`, or what is missing in words."""
    node = report
    walked: list[str] = []
    for key in path.split("/"):
        here = "/".join(walked) or "the report"
        items = node
        if isinstance(node, list):
            items = {item["id"]: item for item in node if isinstance(item, dict) and "id" in item}
        if items is None:
            return None, f"{here} is empty in this report"
        if not isinstance(items, Mapping) or key not in items:
            return None, f"{here} has no {key!r}"
        node = items[key]
        walked.append(key)
    return node, None


def _figure(node: Any, gate: Gate) -> tuple[float | None, tuple[float, float] | None]:
    interval = None
    if isinstance(node, Mapping) and "value" in node:
        node, interval = node["value"], node.get("interval")
    if node is None:
        return None, None
    if not _is_number(node):
        raise ValueError(
            f"gate {gate.name!r}: metric {gate.metric!r} leads to {type(node).__name__}, not to a finite number; "
            f"name a figure of the report"
        )
    if interval is None:
        return float(node), None
    ordered = isinstance(interval, Sequence) and len(interval) == 2 and all(map(_is_number, interval))
    if not ordered or interval[0] > interval[1]:
        raise ValueError(f"gate {gate.name!r}: interval of {gate.metric!r} must be [low, high], got {interval!r}")
    return float(node), (float(interval[0]), float(interval[1]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""What the benchmark is held to: each target with what was reached, and the arithmetic that bounds it.

Targets are data in, verdicts out, so that the page can be rendered again from the result alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from concept_encoder.eval.report.blocks import number

Result = Mapping[str, Any]


class Target(NamedTuple):
    """A line of the table: `verdict` is PASS, MISSED or, where the result has no such figure, NOT MEASURED."""

    group: str
    claim: str
    wanted: str
    reached: str
    verdict: str
    bound: str


def targets(result: Result) -> list[Target]:
    """Every target, judged by the medians of `result`."""
    return [target for judge in JUDGES for target in judge(result)]


def _judged(
    group: str,
    claim: str,
    wanted: float,
    at_least: bool,
    figure: Mapping[str, float] | None,
    unit: str = "",
    bound: str = "",
) -> Target:
    """A target on a figure with median, min and max; the median decides."""
    words = f"{'at least' if at_least else 'at most'} {_amount(wanted, unit)}"
    if figure is None:
        return Target(group, claim, words, "–", "NOT MEASURED", bound)
    met = figure["median"] >= wanted if at_least else figure["median"] <= wanted
    reached = _amount(figure["median"], unit)
    if figure["min"] != figure["max"]:
        reached += f" ({_amount(figure['min'], unit)} to {_amount(figure['max'], unit)})"
    return Target(group, claim, words, reached, "PASS" if met else "MISSED", bound)


def _amount(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.0f} %"
    if unit == "GB":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.2f}{unit}"


def _exact(value: float | None) -> dict[str, float] | None:
    return None if value is None else dict.fromkeys(("median", "min", "max"), value)


# ----------------------------------------------------------------------------------------------------------- training


def _training(result: Result) -> list[Target]:
    group, training = "training step", result.get("training")
    claims = {
        "share": ("a quarter of the positions carry the loss, against the plain step on all", 2.2),
        "full": ("all positions carry the loss, against the plain step", 1.15),
    }
    rows = []
    for form, (claim, wanted) in claims.items():
        figure = training and training["ratios"][f"plain/{form}"]
        rows.append(_judged(group, claim, wanted, True, figure, "×", _step_bound(training, form) if training else ""))
    return rows + _loss(training["loss"] if training else None)


def _step_bound(training: Result, form: str) -> str:
    plain, own = training["cases"]["plain"], training["cases"][form]
    fewer = plain["flops"] / own["flops"]
    whole = plain["seconds"]["median"] / own["products_alone_seconds"]
    return (
        f"{fewer:.2f}× fewer FLOPs ({_giga(plain)} to {_giga(own)} GFLOP); its matrix products alone take "
        f"{number(own['products_alone_seconds'], 3)} s, and would be {whole:.2f}× as fast as the plain step"
    )


def _loss(loss: Result | None) -> list[Target]:
    group, claim = "loss alone", "cross-entropy by chunks, forward and backward, against all logits at once"
    memory = "peak memory over that of the (M, V) logits and their gradient"
    if loss is None:
        return [
            _judged(group, claim, 1.15, True, None, "×"),
            _judged(group, memory, 0.25, False, None),
        ]
    plain, own = (loss["cases"][form] for form in ("plain", "model"))
    most = plain["seconds"]["median"] / own["products_alone_seconds"]
    bound = f"its matrix products alone would be {most:.2f}× as fast as the plain form"
    whole, weight = loss["logits_and_gradient_bytes"], loss["weight_gradient_bytes"]
    share = None if own["peak_memory"] is None else own["peak_memory"] / whole
    words = (
        f"logits and gradient: {_amount(whole, 'GB')}; the gradient of the weights, which any form returns, is "
        f"{weight / whole:.2f} of that"
    )
    return [
        _judged(group, claim, 1.15, True, loss["ratio"], "×", bound),
        _judged(group, memory, 0.25, False, _exact(share), bound=words),
    ]


# ----------------------------------------------------------------------------------------------------------- encoding

PEER_TARGETS = (  # peer, name, N, times as fast as it
    ("bert", "BertModel", 512, 2.4),
    ("bert", "BertModel", 2048, 8.0),
    ("bert", "BertModel", 8192, 30.0),
    ("modernbert", "ModernBertModel", 512, 3.0),
    ("perceiver", "PerceiverModel", 512, 1.2),
    ("perceiver", "PerceiverModel", 8192, 1.2),
)
REACHED_OF_CEILING = 0.85


def _encoding(result: Result) -> list[Target]:
    rows = {(row["form"], row["length"]): row for row in result.get("encoding", {"rows": []})["rows"]}
    found = []
    for peer, name, length, wanted in PEER_TARGETS:
        claim = f"against {name} at N={length:,}"
        row, own = rows.get((peer, length)), rows.get(("ours", length))
        if row is None or own is None:
            found.append(_judged("encoding", claim, wanted, True, None, "×"))
            continue
        fewer = row["flops"] / own["flops"]
        most = row["seconds"]["median"] / own["products_alone_seconds"]
        bound = (
            f"{fewer:.2f}× fewer FLOPs; its matrix products alone would be {most:.2f}× as fast as the peer; "
            f"{_beside_products(own)}"
        )
        found.append(_judged("encoding", claim, wanted, True, row["against"]["ours"], "×", bound))
    return found + _growth(result)


def _beside_products(own: Result) -> str:
    """What the time of a call has besides its products, the largest first."""
    rest = [each for each in own["operators"] if not each["product"]][:3]
    products = sum(each["share"] for each in own["operators"] if each["product"])
    largest = ", ".join(f"{each['operator'].removeprefix('aten::')} {_amount(each['share'], '%')}" for each in rest)
    return f"they are {_amount(products, '%')} of its time, the rest {largest} and smaller ones"


def _growth(result: Result) -> list[Target]:
    exponents = result.get("encoding", {"exponents": {}})["exponents"]
    row = exponents.get("ours")
    span = "" if row is None else f", {row['lengths'][0]:,} to {row['lengths'][1]:,} tokens"
    claim = f"time grows with N to the power of (fitted{span})"
    return [_judged("encoding", claim, 1.05, False, row and row["exponent"])]


def _million(result: Result) -> list[Target]:
    million = result.get("million")
    rows = million["rows"] if million else [None, None]
    length = f"{rows[-1]['length']:,} tokens" if rows[-1] else "a million tokens"
    peak = rows[-1] and rows[-1]["peak_memory"]
    claim = f"time grows with N to the power of (from {rows[0]['length']:,} to {length})" if rows[0] else "time grows"
    return [
        _judged("one long text", f"memory above the weights, {length} in one call", 2e9, False, _exact(peak), "GB"),
        _judged("one long text", claim, 1.05, False, million and million["exponent"]),
    ]


def _padding(result: Result) -> list[Target]:
    padding = result.get("padding")
    claim = f"length-grouped batches of MRPC, against batches padded to {padding['max_length'] if padding else 128}"
    bound = "not among the default groups, since MRPC comes from the Hub; the log has an earlier run"
    if padding:
        bound = f"ratio of counted FLOPs {padding['flops_ratio']['grouped']:.2f}×: the work on concepts has no N in it"
    return [_judged("fine-tuning", claim, 2.0, True, padding and padding["speedup"]["grouped"], "×", bound)]


def _roofline(result: Result) -> list[Target]:
    cases = result.get("training", {"cases": {}})["cases"]
    words = {"full": "training step, all positions", "share": "training step, a quarter of the positions"}
    found = [_share(claim, 0.6, cases.get(form)) for form, claim in words.items()]
    rows = {(row["form"], row["length"]): row for row in result.get("encoding", {"rows": []})["rows"]}
    return [*found, _share("encoding without tables at N=8,192", 0.5, rows.get(("ours", 8192)))]


def _share(claim: str, wanted: float, row: Result | None) -> Target:
    if row is None:
        return _judged("roofline", claim, wanted, True, None, "%")
    bound = f"the same products one by one, and nothing else, reach {_amount(row['products_alone_share'], '%')}"
    return _judged("roofline", claim, wanted, True, row["roofline_share"], "%", bound)


def _giga(row: Result) -> str:
    return f"{row['flops'] / 1e9:,.0f}"


JUDGES: tuple[Callable[[Result], list[Target]], ...] = (_training, _encoding, _million, _padding, _roofline)

"""The benchmark: how fast training and encoding are, against peers and against the machine's own matrix products.

Everything in one process and one run, in turns, so that anything else the machine does affects all alike; a figure is
the median over the repeats with the least and the greatest, a ratio is taken within a turn. FLOPs are counted, not
estimated. The roofline is the rate of the fastest square matrix product, measured in the same turns.
"""

import gc
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from concept_encoder.scripts.dev.scaling import REFERENCE
from concept_encoder.scripts.dev.speed.cases import (
    LOSS_FORMS,
    PEERS,
    TRAINING_FORMS,
    EncodingCase,
    LossCase,
    Plan,
    TrainingCase,
    growth,
    own_forms,
    training_inputs,
)
from concept_encoder.scripts.dev.speed.finetuning import padding_case
from concept_encoder.scripts.dev.speed.tools import (
    Case,
    Run,
    card_peak,
    count_products,
    environment,
    interleave,
    operator_shares,
    peak_memory,
    products_alone,
    ratio,
    spread,
    square_product,
    threads,
)

LONGEST_CALL = 20.0  # seconds; a peer is not asked for what would take longer
MIN_REPEATS = 2
Result = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What every group needs: the plan, how often, where, and the fastest square product: side, FLOP/s."""

    plan: Plan
    repeats: int
    device: str
    square: int
    best_rate: float

    def timed(self, cases: Mapping[str, Case], title: str, counted: bool = True) -> "Timed":
        """Build, count and time cases in turns, with the roofline among them."""
        runs = {name: case.build() for name, case in cases.items()}
        products = {name: count_products(run) for name, run in runs.items()} if counted else {}
        run, flops = square_product(self.square, torch.float32, self.device, self.plan.square_seconds)
        seconds = interleave({"roofline": run, **runs}, self.repeats, self.device, title, warm=counted)
        roofline = [flops / each for each in seconds.pop("roofline")]
        return Timed(runs, products, seconds, roofline)


@dataclass(frozen=True)
class Timed:
    """Runs by name with their products, their seconds per turn, and the roofline per turn in FLOP/s."""

    runs: dict[str, Run]
    products: dict[str, Any]
    seconds: dict[str, list[float]]
    roofline: list[float]

    def row(self, name: str, tokens: int) -> Result:
        """What is kept of a run: seconds, tokens per second, counted FLOPs and calls, share of the roofline."""
        seconds, products = self.seconds[name], self.products.get(name)
        row: Result = {"seconds": spread(seconds), "tokens_per_second": spread([tokens / each for each in seconds])}
        if products is not None:
            rates = [products.flops / each for each in seconds]
            row |= {"flops": products.flops, "calls": products.calls, "roofline_share": ratio(rates, self.roofline)}
        return row

    def ratio(self, above: str, below: str) -> dict[str, float]:
        """Spread of the time of one run over that of another."""
        return ratio(self.seconds[above], self.seconds[below])

    def bound(self, name: str, bench: Bench) -> Result:
        """What the shapes of a run's products allow, best against best, and where its time goes."""
        alone = products_alone(self.products[name], bench.device)
        limit = self.products[name].flops / alone / max(bench.best_rate, *self.roofline)
        return {
            "products_alone_seconds": alone,
            "products_alone_share": limit,
            "operators": operator_shares(self.runs[name]),
        }


def measure(
    plan: Plan,
    groups: Sequence[str],
    repeats: int = 5,
    device: str = "cpu",
    num_threads: int | None = None,
    save: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Run `groups` of the benchmark.

    Args:
        plan: sizes.
        groups: names in `GROUPS`.
        repeats: turns per group, at least 2, besides one that is thrown away.
        device: "cpu" or "cuda".
        num_threads: of torch; default as it is.
        save: called with the result so far after each group, so that a killed run has something to show.

    Returns:
        The result, as strict JSON takes it.

    Raises:
        ValueError: unknown group, repeats below 2, a device that is not there.
    """
    unknown = [name for name in groups if name not in GROUPS]
    if unknown or not groups:
        raise ValueError(f"groups must be some of {', '.join(GROUPS)}, got {', '.join(unknown) or 'none'}")
    if repeats < MIN_REPEATS:
        raise ValueError(f"repeats must be at least {MIN_REPEATS}, for a spread, got {repeats}")
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"threads must be at least 1, got {num_threads}")
    if device != "cpu" and not (device == "cuda" and torch.cuda.is_available()):
        raise ValueError(f"device must be 'cpu' or, where there is a card, 'cuda', got {device!r}")
    with threads(num_threads):
        result: Result = {"kind": "speed", "environment": environment(device), "plan": asdict(plan)}
        result |= {"repeats": repeats, "roofline": _roofline(plan, repeats, device)}
        roofline = result["roofline"]
        best_rate = roofline["rates"]["float32"][str(roofline["size"])]["max"]
        bench = Bench(plan, repeats, device, roofline["size"], best_rate)
        save(result)
        for name in groups:
            result[name] = GROUPS[name](bench)
            gc.collect()
            save(result)
    result["environment"]["load_after"] = round(os.getloadavg()[0], 2)
    save(result)
    return result


def _roofline(plan: Plan, repeats: int, device: str) -> Result:
    """Rate of square products in float32, and at the fastest size in bfloat16; FLOP/s."""
    rates = _product_rates(plan, plan.square_sizes, torch.float32, repeats, device)
    best = max(plan.square_sizes, key=lambda size: rates[str(size)]["median"])
    half = _product_rates(plan, (best,), torch.bfloat16, repeats, device)
    return {
        "size": best,
        "flops_per_second": rates[str(best)]["median"],
        "rates": {"float32": rates, "bfloat16": half},
    }


def _product_rates(plan: Plan, sizes: Sequence[int], dtype: torch.dtype, repeats: int, device: str) -> Result:
    made = {str(size): square_product(size, dtype, device, plan.square_seconds) for size in sizes}
    runs = {name: run for name, (run, _) in made.items()}
    seconds = interleave(runs, repeats, device, f"products in {dtype}", warm=True)
    return {name: spread([flops / each for each in seconds[name]]) for name, (_, flops) in made.items()}


# ----------------------------------------------------------------------------------------------------------- training


def _training(bench: Bench) -> Result:
    """The step in the plain way, as the model takes it, and at a share of the positions; and the loss alone."""
    plan, tokens = bench.plan, bench.plan.batch * bench.plan.length
    forms = ("plain", "full", "share")
    cases = {form: TrainingCase(plan, form, bench.device) for form in forms}
    timed = bench.timed(cases, "training")
    labels = {name: training_inputs(plan, TRAINING_FORMS[name].share, "cpu")["labels"] for name in forms}
    return {
        "tokens": tokens,
        "cases": {
            name: {
                **timed.row(name, tokens),
                **timed.bound(name, bench),
                "labels": int((labels[name] != -100).sum()),
                "peak_memory": peak_memory(cases[name]),
            }
            for name in forms
        },
        "ratios": {f"plain/{name}": timed.ratio("plain", name) for name in ("full", "share")},
        "loss": _loss(bench, int((labels["full"] != -100).sum())),
    }


def _loss(bench: Bench, labels: int) -> Result:
    cases = {form: LossCase(bench.plan, form, bench.device) for form in LOSS_FORMS}
    timed = bench.timed(cases, "loss")
    rows = {
        form: {**timed.row(form, labels), **timed.bound(form, bench), "peak_memory": peak_memory(case)}
        for form, case in cases.items()
    }
    size = 4 * bench.plan.vocab_size
    return {
        "labels": labels,
        "logits_and_gradient_bytes": 2 * labels * size,
        "weight_gradient_bytes": size * bench.plan.hidden_size,
        "cases": rows,
        "ratio": timed.ratio("plain", "model"),
    }


# ----------------------------------------------------------------------------------------------------------- encoding


def _encoding(bench: Bench) -> Result:
    """Texts of rising length through this model in its forms and through its peers."""
    plan, rows, skipped = bench.plan, [], []
    seconds: dict[str, dict[int, list[float]]] = {}
    for length in plan.lengths:
        forms = own_forms(plan, length)
        for name, power in PEERS.items():
            reason = _too_long(seconds.get(name, {}), power, length, plan)
            if reason:
                skipped.append({"form": name, "length": length, "reason": reason})
            else:
                forms.append(name)
        cases = {form: EncodingCase(plan, form, length, bench.device) for form in forms}
        timed = bench.timed(cases, f"encoding, N={length}")
        for form in forms:
            row = {"form": form, "length": length, "texts": plan.texts(length)}
            row |= timed.row(form, length * plan.texts(length))
            if form == "ours" and length in plan.lengths[:3]:
                row |= timed.bound(form, bench)
            row["against"] = {"ours": timed.ratio(form, "ours")}
            rows.append(row | {"peak_memory": peak_memory(cases[form])})
            seconds.setdefault(form, {})[length] = timed.seconds[form]
        del timed, cases
        gc.collect()
    return {"rows": rows, "skipped": skipped, "exponents": _exponents(plan, seconds, bench.repeats)}


def _too_long(known: Mapping[int, Sequence[float]], power: int, length: int, plan: Plan) -> str | None:
    """Why a peer is not asked to read `length` tokens; None where it is."""
    if not known:
        return None
    last = max(known)
    predicted = median(known[last]) * plan.texts(length) / plan.texts(last) * (length / last) ** power
    if predicted <= LONGEST_CALL:
        return None
    return f"about {predicted:.0f} s a call, from {median(known[last]):.1f} s at {last:,} tokens and N to the {power}"


def _exponents(plan: Plan, seconds: Mapping[str, Mapping[int, Sequence[float]]], repeats: int) -> Result:
    """Power of N that the time of one text grows with from the second length on, per turn."""
    fitted = {}
    for form, by_length in seconds.items():
        lengths = [length for length in by_length if length in plan.lengths[1:]]
        if len(lengths) > 1:
            turns = [growth(lengths, [by_length[length][turn] for length in lengths]) for turn in range(repeats)]
            fitted[form] = {"lengths": [lengths[0], lengths[-1]], "exponent": spread(turns)}
    return fitted


def _million(bench: Bench) -> Result:
    """A very long text by chunks, next to the longest of the others."""
    plan = bench.plan
    lengths = (plan.lengths[-1], plan.longest)
    cases = {str(length): EncodingCase(plan, "chunked", length, bench.device) for length in lengths}
    timed = bench.timed(cases, f"N={plan.longest}")
    pairs = zip(*(timed.seconds[str(length)] for length in lengths), strict=True)
    return {
        "chunk": plan.chunk,
        "rows": [
            {"length": length, **timed.row(str(length), length), "peak_memory": peak_memory(cases[str(length)])}
            for length in lengths
        ],
        "exponent": spread([growth(list(lengths), list(pair)) for pair in pairs]),
    }


# ----------------------------------------------------------------------------------------- variants, and a card's size


def _variants(bench: Bench) -> Result:
    """What bfloat16, compiling and gradient checkpointing do to the step, and the first two to encoding."""
    plan = bench.plan
    if shutil.which("g++") is None and bench.device == "cpu":
        forms = [form for form in plan.variants if form != "compile"]
        skipped = [{"form": "compile", "reason": "there is no C++ compiler (g++) on this machine"}]
    else:
        forms = list(plan.variants)
        skipped = [{"form": "compile", "reason": "not in this plan"}] if "compile" not in forms else []
    length = plan.lengths[min(2, len(plan.lengths) - 1)]
    encoders = {"full": "ours"} | {form: form for form in ("bfloat16", "compile") if form in forms}
    training: dict[str, Case] = {form: TrainingCase(plan, form, bench.device) for form in forms}
    encoding: dict[str, Case] = {
        form: EncodingCase(plan, name, length, bench.device) for form, name in encoders.items()
    }
    rows = []
    for task, cases, tokens in (("training", training, plan.batch * plan.length), ("encoding", encoding, length)):
        timed = bench.timed(cases, f"variants, {task}", counted=False)
        for form, case in cases.items():
            row = {"task": task, "form": form, **timed.row(form, tokens), "against": timed.ratio("full", form)}
            rows.append(row | {"peak_memory": peak_memory(case)})
        torch._dynamo.reset()
    return {"length": length, "rows": rows, "skipped": skipped}


def _scaling(bench: Bench) -> Result:
    """Training steps in bfloat16 at growing batches, for a card: tokens per second, memory, share of its peak."""
    plan, rows, skipped = bench.plan, [], []
    peak = card_peak(environment(bench.device)["device"])
    for batch in plan.batches:
        try:
            rows.append(_scaled(bench, batch, peak))
        except torch.OutOfMemoryError:
            skipped.append({"batch": batch, "reason": "the card has not the memory for it"})
            break
    best = max(row["tokens_per_second"]["median"] for row in rows)
    hours = REFERENCE.tokens / best / 3600
    return {"peak_flops_per_second": peak, "rows": rows, "skipped": skipped, "reference_hours": hours}


def _scaled(bench: Bench, batch: int, peak: float | None) -> Result:
    case = TrainingCase(bench.plan, "bfloat16", bench.device, batch)
    timed = bench.timed({"step": case}, f"scaling, batch {batch}")
    row = {"batch": batch, **timed.row("step", batch * bench.plan.length), "peak_memory": peak_memory(case)}
    del row["roofline_share"]  # of float32; this is bfloat16
    row["peak_share"] = (
        None if peak is None else spread([row["flops"] / each / peak for each in timed.seconds["step"]])
    )
    operators = {str(func.overloadpacket) for func, *_ in timed.products["step"].signatures}
    row["attention"] = sorted(name for name in operators if "attention" in name and "backward" not in name)
    return row


def _padding(bench: Bench) -> Result:
    """Fine-tuning on MRPC with batches padded to a fixed length, to their longest text, and grouped by length."""
    plan = bench.plan
    return padding_case(
        repeats=bench.repeats,
        hidden_size=plan.hidden_size,
        num_hidden_layers=plan.num_layers,
        num_attention_heads=plan.num_heads,
        intermediate_size=plan.intermediate_size,
        num_concepts=plan.num_concepts,
    )


GROUPS: dict[str, Callable[[Bench], Result]] = {
    "training": _training,
    "encoding": _encoding,
    "million": _million,
    "variants": _variants,
    "padding": _padding,
    "scaling": _scaling,
}


def default_groups(device: str) -> list[str]:
    """Every group that needs nothing from the Hub; `scaling` on a card alone."""
    return [name for name in GROUPS if name != "padding" and (name != "scaling" or device != "cpu")]

"""Instruments of the benchmark: turns, counted matrix products, peak memory of a process of its own, the machine."""

import ctypes
import gc
import math
import multiprocessing
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from concept_encoder.utils.progress import progress

aten = torch.ops.aten
Run = Callable[[], Any]
PRODUCT_REPEATS = 3
SHORT = 0.5  # seconds of a call that emptied caches would slow
OPERATORS = 8  # that a row names
CARDS = {  # dense bf16 peak in FLOP/s, by a part of the card's name, from the makers' data sheets
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


class Case(Protocol):
    """What can be measured: `build` makes the inputs and weights, and returns the call to time."""

    @property
    def device(self) -> str: ...

    def build(self) -> Run: ...

    def warm_up(self) -> "Case | None":
        """A cheap case of the same code, to run before memory is taken; None where `build` does that."""
        ...


# --------------------------------------------------------------------------------------------------------------- time


def interleave(
    runs: Mapping[str, Run], repeats: int, device: str, title: str = "", warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each run, in turns A B C A B C ...: name -> `repeats` values.

    A turn that is thrown away comes first, unless every run is `warm`: has been called before. A run that took less
    than `SHORT` the last time is called once more before it is timed, since the others have emptied the caches; who
    encodes text after text finds them full. With a `title` there is a progress bar.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    last = dict.fromkeys(runs, math.inf)
    with progress(total=len(runs) * (repeats + 1 - warm), desc=title, leave=False, disable=not title) as bar:
        for turn in range(warm, repeats + 1):
            for name, run in runs.items():
                bar.set_postfix_str(name, refresh=False)
                if len(runs) > 1 and last[name] < SHORT:
                    run()
                synchronize(device)
                start = time.perf_counter()
                run()
                synchronize(device)
                last[name] = time.perf_counter() - start
                if turn:
                    seconds[name].append(last[name])
                bar.update()
    return seconds


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of the repeats."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Spread of above / below, each taken within a turn, so that what slows a whole turn cancels."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


# ---------------------------------------------------------------------------------------------------- matrix products


def _attention_flops(query, key, value, *args, **kwargs) -> int:
    return 2 * math.prod(query.shape[:3]) * key.shape[2] * (query.shape[3] + value.shape[3])


def _attention_backward_flops(gradient, query, key, value, *args, **kwargs) -> int:
    # Twice the forward: scores that the kernel takes a second time are its own choice, and no use to anybody.
    return 2 * _attention_flops(query, key, value)


def _added_product_flops(added, left, right, *args, **kwargs) -> int:
    return 2 * left.numel() * right.shape[-1]


FORMULAS = {  # torch's own, and what it does not know
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    aten.addmm_: _added_product_flops,
    aten.baddbmm_: _added_product_flops,
}


@dataclass(frozen=True)
class Products:
    """Matrix products of a call: `flops`, `calls`, and every `(operator, arguments)` with how often it was called."""

    flops: int
    calls: int
    signatures: Counter[tuple]


class _Recorder(TorchDispatchMode):
    """Counts as torch's `FlopCounterMode`, which itself fails in inference mode and misses attention on a CPU."""

    def __init__(self):
        super().__init__()
        self.flops = 0
        self.signatures: Counter[tuple] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None:
            with self:  # in inference mode a linear layer arrives whole
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        self.flops += formula(*args, **kwargs, out_val=result)
        signature = (func, tree_map(_outline, args), tuple(sorted(tree_map(_outline, kwargs).items())))
        self.signatures[_hashable(signature)] += 1
        return result


@dataclass(frozen=True)
class _Outline:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self, device: str) -> Tensor:
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        return made.normal_() if made.is_floating_point() else made.zero_()


def _outline(value: Any) -> Any:
    return _Outline(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list | tuple) else value


def count_products(run: Run) -> Products:
    """Call `run` once and count its matrix products, attention and backward included."""
    with _Recorder() as recorder:
        run()
    return Products(recorder.flops, sum(recorder.signatures.values()), recorder.signatures)


def products_alone(products: Products, device: str) -> float:
    """Seconds that the same matrix products take at best, one by one on numbers of the same shapes.

    What a call cannot be faster than with these shapes and this library, no matter what is done about the rest of it.
    """
    total = 0.0
    for (func, args, kwargs), count in products.signatures.items():
        # The same numbers each time, so with warm caches, as a bound should be.
        made, named = _made(args, device), {name: _made(value, device) for name, value in kwargs}
        seconds = interleave({"product": lambda f=func, a=made, k=named: f(*a, **k)}, PRODUCT_REPEATS, device)  # type: ignore[misc]
        total += count * min(seconds["product"])
    return total


def _made(value: Any, device: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_made(item, device) for item in value)
    return value.tensor(device) if isinstance(value, _Outline) else value


def square_product(size: int, dtype: torch.dtype, device: str, seconds: float) -> tuple[Run, int]:
    """A run that multiplies two square matrices as often as takes about `seconds`, and its FLOPs."""
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    torch.mm(left, right)
    synchronize(device)
    start = time.perf_counter()
    torch.mm(left, right)
    synchronize(device)
    times = max(1, round(seconds / (time.perf_counter() - start)))

    def run() -> None:
        for _ in range(times):
            torch.mm(left, right)

    return run, 2 * size**3 * times


def operator_shares(run: Run) -> list[dict[str, Any]]:
    """The `OPERATORS` that `run` spends most time in: name, share of the time of all, and whether it is a product."""
    with torch.profiler.profile() as profile:
        run()
    own = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(own.values())
    products = {str(packet).replace(".", "::") for packet in FORMULAS}
    rows = [{"operator": name, "share": own[name] / total, "product": name in products} for name in own]
    return sorted(rows, key=lambda row: -row["share"])[:OPERATORS]


# ------------------------------------------------------------------------------------------------------------- memory


def peak_memory(case: Case) -> int | None:
    """Bytes that a call of `case` takes at its highest above what was held before it, inputs and weights.

    On a CPU the resident memory of a fresh process; None where the system does not tell, which only Linux does. On a
    GPU what torch's allocator handed out.
    """
    if case.device.startswith("cuda"):
        return _peak_of_card(case)
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["concept_encoder.scripts.dev.speed.cases"])  # imported once, not in each process
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_peak, args=(theirs, case, torch.get_num_threads()))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"the process that measures the memory of {case} died, code {process.exitcode}") from error
    finally:
        process.join()


def _send_peak(connection, case: Case, threads: int) -> None:
    torch.set_num_threads(threads)
    cheap = case.warm_up()
    if cheap is not None:
        cheap.build()()  # libraries, thread pools and their buffers
    run = case.build()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept would hide what is taken
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = _status("VmRSS")
    run()
    connection.send(_status("VmHWM") - before)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def _peak_of_card(case: Case) -> int:
    run = case.build()
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    synchronize(case.device)
    return torch.cuda.max_memory_allocated() - before


# ------------------------------------------------------------------------------------------------------------ machine


def environment(device: str) -> dict[str, Any]:
    """The machine, the versions and the day, as far as a figure depends on them."""
    on_card = device.startswith("cuda")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if on_card else "cpu",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"


def card_peak(name: str) -> float | None:
    """Dense bf16 peak of a card in FLOP/s, None where it is not in the table."""
    return next((peak for part, peak in CARDS.items() if part in name), None)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """torch with `count` threads; None leaves the number as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

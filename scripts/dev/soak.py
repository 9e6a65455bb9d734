"""Watch a long pretraining run from outside.

    python scripts/dev/soak.py microworld --hours 2 --output_dir runs/long

Trains the recipe in a process of its own, with evaluation and checkpoints, and looks at its memory, file handles and
threads; then ends it with SIGTERM. Writes the result and the section "Long runs" of the page. Fields of the recipe may
follow.
"""

import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import transformers
from scipy.stats import theilslopes

from concept_encoder.trainers.training.saving import find_checkpoints, last_complete
from concept_encoder.trainers.training.stopping import EXIT_STATUS
from concept_encoder.utils.command_line import RECIPE_FIELDS, Command, run, say
from concept_encoder.utils.files import write_atomically, write_json
from concept_encoder.utils.progress import progress
from concept_encoder.utils.untrusted import read_object

SCRIPTS = Path(__file__).resolve().parents[1]
DOCS = SCRIPTS.parent / "docs"
ENDLESS = ["--max_steps", "1000000000", "--lr_scheduler_type", "constant_with_warmup"]
BLOCK_SECONDS = 120.0  # samples of so long are one median: saving and evaluating come and go within
WARM_UP_SHARE = 0.1  # of the run, left out of the trends: caches fill, the optimizer's state is made
# Growth per hour that a run can live with: a week of it is below 1 GB, and no more handles than are free (1024).
BOUNDS = {"resident_mb": 5.0, "handles": 1.0, "threads": 1.0}
NAMES = {"resident_mb": "resident memory, MB", "handles": "file handles", "threads": "threads"}
PAGE_MARKS = ("<!-- soak -->\n", "<!-- /soak -->\n")
STOP_SECONDS = 600.0  # for the step and the checkpoint that follow SIGTERM


def soak(command: Sequence[str], output_dir: Path, hours: float, every: float) -> dict[str, Any]:
    """Run a pretraining command for so long, end it with SIGTERM, and say whether it held still.

    Args:
        command: of a pretraining run that would last longer, with evaluation and checkpoints.
        output_dir: of that run; gets `soak.log`, what the run prints.
        hours: how long to let it run.
        every: seconds between two looks.

    Returns:
        `blocks` of two minutes (medians), `trends` with a slope per hour and its 95 % interval, `training` figures,
        `environment`, `verdict` PASS, FAIL or INCONCLUSIVE with `reasons`.

    Raises:
        ValueError: hours or every not positive, or too few blocks; the run ended by itself, with its last line.
        SystemExit: a SIGTERM came; the run was killed.
    """
    if not 0 < every <= BLOCK_SECONDS or hours * 3600 < 10 * BLOCK_SECONDS:
        raise ValueError(
            f"every must be in (0, {BLOCK_SECONDS:.0f}] seconds and hours be at least "
            f"{10 * BLOCK_SECONDS / 3600:.2f}, got every={every}, hours={hours}"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    log = output_dir / "soak.log"
    seen: set[int] = set()
    with log.open("w", encoding="utf-8") as file, _leaving_on_sigterm():
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            samples = _watch(child, output_dir, hours * 3600, every, seen)
            child.send_signal(signal.SIGTERM)
            status = child.wait(STOP_SECONDS)
        finally:
            child.kill()
            child.wait()
    if samples is None or status != EXIT_STATUS:
        words = log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line for line in reversed(words) if line.strip()), "nothing")
        raise ValueError(f"the run ended with status {status} before its time; its last line, in {log}: {said}")
    blocks = in_blocks(samples)
    result = {
        "kind": "soak",
        "command": [Path(word).name if Path(word).is_absolute() else word for word in command],
        "hours": samples[-1]["seconds"] / 3600,
        "every": every,
        "warm_up_share": WARM_UP_SHARE,
        "blocks": blocks,
        "trends": trends(blocks),
        "training": _training(output_dir, seen, status),
        "environment": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "cores": psutil.cpu_count(),
        },
    }
    return {**result, **verdict(result)}


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises; by default it would end this process alone, and leave the child running."""

    def leave(*_) -> None:
        raise SystemExit(EXIT_STATUS)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _watch(
    child: subprocess.Popen, output_dir: Path, seconds: float, every: float, seen: set[int]
) -> list[dict[str, float]] | None:
    """Samples until the time is over, None when the child ends before; `seen` collects its checkpoints' steps."""
    samples: list[dict[str, float]] = []
    start, process = time.monotonic(), psutil.Process(child.pid)
    with progress(total=round(seconds), unit="s", desc="soak") as bar:
        while (now := time.monotonic() - start) < seconds:
            if child.poll() is not None:
                return None
            samples.append({"seconds": now, **_look(process)})
            seen.update(step for step, _ in find_checkpoints(output_dir))
            bar.n = round(now)
            bar.set_postfix_str(f"{samples[-1]['resident_mb']:.0f} MB, {len(seen)} checkpoints")
            time.sleep(every)
    return samples


def _look(process: psutil.Process) -> dict[str, float]:
    """Of a process and those below it, data workers for instance."""
    sums = dict.fromkeys(BOUNDS, 0.0)
    for each in [process, *process.children(recursive=True)]:
        try:
            figures = (each.memory_info().rss / 1e6, each.num_fds(), each.num_threads())
        except psutil.NoSuchProcess:
            continue
        for name, figure in zip(BOUNDS, figures, strict=True):
            sums[name] += figure
    return sums


def in_blocks(samples: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Medians of each two minutes' samples, with the block's middle in `hours`; an unfinished last one is out."""
    grouped: dict[int, list[Mapping[str, float]]] = {}
    for sample in samples:
        grouped.setdefault(int(sample["seconds"] // BLOCK_SECONDS), []).append(sample)
    whole = [
        number for number in grouped if (number + 1) * BLOCK_SECONDS <= samples[-1]["seconds"] + BLOCK_SECONDS / 2
    ]
    return [
        {
            "hours": (number + 0.5) * BLOCK_SECONDS / 3600,
            **{name: median(sample[name] for sample in grouped[number]) for name in BOUNDS},
        }
        for number in whole
    ]


def trends(blocks: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Name -> `per_hour`, its 95 % `interval`, `first` and `last` block after the warm-up.

    Source: the Theil-Sen estimator with Sen's interval (`scipy.stats.theilslopes`), which peaks do not move. The
    interval takes blocks for independent.
    """
    steady = list(blocks[math.ceil(WARM_UP_SHARE * len(blocks)) :])
    hours = [block["hours"] for block in steady]
    found = {}
    for name in BOUNDS:
        values = [block[name] for block in steady]
        slope, _, low, high = theilslopes(values, hours, 0.95)
        interval = [float(low), float(high)]
        found[name] = {"per_hour": float(slope), "interval": interval, "first": values[0], "last": values[-1]}
    return found


def _training(output_dir: Path, seen: set[int], status: int) -> dict[str, Any]:
    """What the run reached, from its last whole checkpoint."""
    last = last_complete(output_dir)
    if last is None:
        raise ValueError(f"{output_dir} has no whole checkpoint after the run")
    state = json.loads((Path(last) / "trainer_state.json").read_text(encoding="utf-8"))
    loss, evaluation = ([row[name] for row in state["log_history"] if name in row] for name in ("loss", "eval_loss"))
    return {
        "steps": state["global_step"],
        "tokens_seen": state["num_input_tokens_seen"],
        "checkpoints": len(seen | {state["global_step"]}),
        "evaluations": len(evaluation),
        "loss": [loss[0], loss[-1]],
        "eval_loss": [evaluation[0], evaluation[-1]] if evaluation else None,
        "finite": all(math.isfinite(value) for value in [*loss, *evaluation]),
        "exit_status": status,
    }


def verdict(result: Mapping[str, Any]) -> dict[str, Any]:
    """`verdict` and `reasons`: a trend passes when its whole interval is below the bound, fails when none does."""
    reasons, verdicts = [], ["PASS" if result["training"]["finite"] else "FAIL"]
    if verdicts == ["FAIL"]:
        reasons.append("a loss is not finite")
    for name, trend in result["trends"].items():
        low, high = trend["interval"]
        verdicts.append("PASS" if high <= BOUNDS[name] else "FAIL" if low > BOUNDS[name] else "INCONCLUSIVE")
        if verdicts[-1] != "PASS":
            slope = f"{trend['per_hour']:+.2f} per hour ({low:+.2f} to {high:+.2f})"
            reasons.append(f"{NAMES[name]}: {slope}, at most {BOUNDS[name]:g}")
    overall = next((each for each in ("FAIL", "INCONCLUSIVE") if each in verdicts), "PASS")
    return {"verdict": overall, "reasons": reasons}


def render_section(result: Mapping[str, Any], result_name: str) -> str:
    """Verdict, slopes and figures in Markdown; `result_name` is the JSON's path relative to the page."""
    training = result["training"]
    headline = ": ".join([f"**{result['verdict']}**", *(["; ".join(result["reasons"])] if result["reasons"] else [])])
    losses = [f"loss {training['loss'][0]:.3f} to {training['loss'][1]:.3f}"]
    if training["eval_loss"] is not None:
        losses.append("in evaluation {:.3f} to {:.3f}".format(*training["eval_loss"]))
    losses.append("every one finite" if training["finite"] else "NOT every one finite")
    rows = []
    for name, trend in result["trends"].items():
        ends = f"{trend['first']:,.0f} | {trend['last']:,.0f}"
        interval = "{:+.2f} to {:+.2f}".format(*trend["interval"])
        rows.append(f"| {NAMES[name]} | {ends} | {trend['per_hour']:+.2f} | {interval} | {BOUNDS[name]:g} |")
    return f"""{headline}. {result["hours"]:.2f} hours, {training["steps"]:,} steps,
{training["tokens_seen"] / 1e6:,.1f} M tokens, {training["checkpoints"]} checkpoints,
{training["evaluations"]} evaluations; {", ".join(losses)}.
Ended by SIGTERM with status {training["exit_status"]} and a whole checkpoint. From [`{result_name}`]({result_name}).

| | after the warm-up | at the end | per hour | 95 % interval | at most |
| --- | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}

Medians of {BLOCK_SECONDS / 60:.0f} minutes, the first {result["warm_up_share"]:.0%} of them left out; Theil-Sen
slopes, whose interval takes the medians for independent.
"""


def refresh_page(text: str, section: str) -> str:
    """`text` with what stands between the marks replaced; ValueError where it has no marks."""
    begin, end = (text.find(mark) for mark in PAGE_MARKS)
    if begin < 0 or end < begin:
        raise ValueError(f"the page has no {PAGE_MARKS[0].strip()} followed by {PAGE_MARKS[1].strip()}")
    return text[: begin + len(PAGE_MARKS[0])] + section + text[end:]


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("recipe", nargs="?", help="name in scripts/recipes, or path; not with --render")
    parser.add_argument("--output_dir", type=Path, help="new folder of the run; not with --render")
    parser.add_argument("--hours", type=float, default=2.0, help="how long")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks")
    parser.add_argument(
        "--result",
        type=Path,
        default=DOCS / "results" / "soak.json",
        help="JSON file (default: docs/results/soak.json)",
    )
    parser.add_argument(
        "--page",
        type=Path,
        default=DOCS / "RELIABILITY.md",
        help="whose section to write (default: docs/RELIABILITY.md)",
    )
    parser.add_argument("--render", action="store_true", help="run nothing, write the section from --result again")
    parser.accept(RECIPE_FIELDS)
    arguments = parser.parse_args(argv)
    if arguments.render == (arguments.recipe is not None and arguments.output_dir is not None):
        parser.error("give RECIPE and --output_dir, or --render and neither")
    with parser.refusing():
        if not arguments.render:
            own = ["--output_dir", str(arguments.output_dir), "--disable_tqdm", "true"]
            command = [
                sys.executable,
                *("-m", "concept_encoder", "pretrain"),
                arguments.recipe,
                *ENDLESS,
                *parser.words,
                *own,
            ]
            result = soak(command, arguments.output_dir, arguments.hours, arguments.every)
            write_json(arguments.result, result)
        result = read_object(arguments.result)
        name = Path(os.path.relpath(arguments.result, arguments.page.parent)).as_posix()
        section = render_section(result, name)
        write_atomically(arguments.page, refresh_page(arguments.page.read_text(encoding="utf-8"), section))
    print(section)
    say(f"Written to {arguments.result} and {arguments.page}.")


if __name__ == "__main__":
    run(main)

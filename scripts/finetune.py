"""Fine-tune a checkpoint on benchmarks: python scripts/finetune.py CHECKPOINT --tasks mrpc stsb --protocol reference

Writes one JSON file per task into the folder finetune of the run and prints the scores beside their chance levels.
"""

import argparse
import dataclasses
from pathlib import Path

from concept_encoder.eval.benchmarks import BENCHMARKS, CHANCE_RULES
from concept_encoder.eval.finetuning import (
    OVERRIDABLE,
    PROTOCOLS,
    Protocol,
    find_protocol,
    finetune_tasks,
    result_path,
)


def main(argv: list[str] | None = None) -> None:
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        changes = {name: getattr(arguments, name) for name in OVERRIDABLE if getattr(arguments, name) is not None}
        protocol = find_protocol(arguments.protocol).override(**changes)
        output_dir = _output_dir(arguments)
        results = finetune_tasks(
            arguments.checkpoint,
            arguments.tasks,
            protocol,
            output_dir,
            overwrite=arguments.overwrite,
            save_model=arguments.save_model,
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    _print_table(results)
    written = result_path(output_dir, results[0]["task"], protocol).parent
    print(f"\nWritten to {written}. Next: python scripts/report.py {output_dir}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=f"Tasks: {', '.join(BENCHMARKS)}", allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="run folder or Hub id of a pretrained concept encoder")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="benchmarks, listed below")
    parser.add_argument("--protocol", required=True, help=f"hyper-parameters: {', '.join(PROTOCOLS)}")
    parser.add_argument("--output_dir", help="run folder to write to (default: CHECKPOINT, when it is a folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    parser.add_argument("--save_model", action="store_true", help="keep each fine-tuned model beside its result")
    group = parser.add_argument_group("in place of the protocol's values, and then part of its name in the results")
    for field in dataclasses.fields(Protocol):
        if field.name not in OVERRIDABLE:
            continue
        if field.type is bool:
            group.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction)
        else:
            group.add_argument(f"--{field.name}", type=field.type)
    return parser


def _output_dir(arguments: argparse.Namespace) -> Path:
    if arguments.output_dir is None and not Path(arguments.checkpoint).is_dir():
        raise ValueError(f"{arguments.checkpoint} is no folder to write results to; give --output_dir as well")
    return Path(arguments.output_dir or arguments.checkpoint)


def _print_table(results: list[dict]) -> None:
    width = max(len(result["task"]) for result in results)
    print(f"\n{'task':<{width}}  {'metric':<20}  {'score':>9}  {'chance':>6}  rule")
    for result in results:
        for metric, score in result["metrics"].items():
            shown = "undefined" if score is None else f"{score:.3f}"
            chance = f"{result['chance'][metric]:>6.3f}  {CHANCE_RULES[metric]}"
            print(f"{result['task']:<{width}}  {metric:<20}  {shown:>9}  {chance}")


if __name__ == "__main__":
    main()

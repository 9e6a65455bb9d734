"""Import a checkpoint of the reference run's research code.

    concept-encoder import-checkpoint runs/original --output_dir runs/imported

The original is a folder with config.json and model.safetensors (or pytorch_model.bin), or a Hub id. What is written is
a checkpoint of this package, code and tokenizer included, that gives the same outputs. Prints what became of every
tensor and keeps that in import.json.
"""

from pathlib import Path

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run, say, suggest


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="folder or Hub id of the original")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; must not exist, or be empty")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    folder = arguments["output_dir"]
    with parser.refusing():
        from concept_encoder.trainers.weights.importing import format_table
        from concept_encoder.utils.files import TOKENIZER_FILES

        model, table = ce.import_checkpoint(**arguments)
    print(format_table(table))
    say(f"\nWritten to {folder}: {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters.")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        say("The original holds no tokenizer; save the one it was trained with next to the weights.")
    suggest("similarity", folder, "--tasks", "stsb")


if __name__ == "__main__":
    run(main)

"""Import a checkpoint of the reference run's research code: python scripts/import_checkpoint.py SOURCE OUT

SOURCE is a folder with config.json and model.safetensors (or pytorch_model.bin), or a Hub id. OUT becomes a checkpoint
of this package, code and tokenizer included, that gives the same outputs. Prints what became of every tensor and keeps
that in OUT/import.json.
"""

import argparse
from pathlib import Path

from concept_encoder.trainers.files import TOKENIZER_FILES
from concept_encoder.trainers.importing import CLASSES, format_table, import_checkpoint


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=f"Classes of the original: {', '.join(CLASSES)}"
    )
    parser.add_argument("source", help="folder or Hub id of a checkpoint of the original code")
    parser.add_argument("out", type=Path, help="folder to write; must not exist, or be empty")
    arguments = parser.parse_args(argv)
    try:
        model, table = import_checkpoint(arguments.source, arguments.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(format_table(table))
    print(f"\n{arguments.out}: {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters")
    if not any((arguments.out / name).is_file() for name in TOKENIZER_FILES):
        print("The source holds no tokenizer; save the one it was trained with beside the weights.")


if __name__ == "__main__":
    main()

"""The modules of the package: where they are and what they are called."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "concept_encoder"


def package_files() -> list[Path]:
    files = sorted(ROOT.glob("*.py"))
    for floor in ("utils", "trainers", "eval", "scripts"):
        files += sorted((ROOT / floor).rglob("*.py"))
    return files


def module_name(path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

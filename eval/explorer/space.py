"""The concept explorer of one published checkpoint as the folder of a Hugging Face Space."""

import shutil
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import HfApi

from ...utils.untrusted import is_hub_id
from ..report.pages import page_environment
from .pages import TEMPLATES

PACKAGE = Path(__file__).resolve().parents[2]
# The package's own requirements and those of its extras train and eval; Gradio itself is the Space's sdk_version.
REQUIREMENTS = (
    "torch transformers safetensors huggingface_hub accelerate datasets numpy pyarrow pyyaml scipy tokenizers tqdm "
    "argcomplete filelock pydantic evaluate jinja2 markdown matplotlib psutil scikit-learn "
    "sentence-transformers"
).split()


def write_space(checkpoint: str, revision: str | None, folder: str | Path) -> str:
    """Write README.md, app.py, requirements.txt and a copy of this package into a new folder.

    The package travels along, so the Space runs no code of the checkpoint; requirements are pinned to the versions
    that are installed here, and the checkpoint to one commit.

    Args:
        checkpoint: Hub id.
        revision: commit, branch or tag; None is its main branch. What it points to now is what is written.
        folder: must not exist, or be empty.

    Returns:
        The commit.

    Raises:
        ValueError: a local checkpoint; a folder with something in it.
        OSError: the Hub does not know the checkpoint or the revision.
    """
    folder = Path(folder)
    if Path(checkpoint).is_dir() or not is_hub_id(checkpoint):
        raise ValueError(
            f"a Space loads its checkpoint from the Hub, and {checkpoint!r} is not a Hub id; push it first with "
            "concept-encoder push"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder; give another --space_dir")
    commit = HfApi().model_info(checkpoint, revision=revision).sha
    assert commit is not None
    values = {
        "checkpoint": checkpoint,
        "revision": commit,
        "gradio_version": version("gradio"),
        "requirements": {name: version(name).partition("+")[0] for name in REQUIREMENTS},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("README.md", "app.py", "requirements.txt"):
        page = page_environment(TEMPLATES).get_template(f"space_{name}.j2").render(values)
        (folder / name).write_text(page, encoding="utf-8")
    _copy_package(folder / "concept_encoder")
    return commit


def _copy_package(folder: Path) -> None:
    """The files that the wheel has."""
    files = [*PACKAGE.glob("*.py"), PACKAGE / "__init__.pyi", PACKAGE / "model_cards" / "template.md"]
    for part in ("utils", "trainers", "eval"):
        files += [path for path in (PACKAGE / part).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in files:
        target = folder / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

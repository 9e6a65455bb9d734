"""Makes the root's own documents pages of the site, and links between files links between pages.

A link is written as it works in the repository, from one file to another; a page may be elsewhere on the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#\s]+)")
TYPES = ROOT / ".cache" / "types"


def on_startup(command, dirty):
    """The checkout under the package's name, where the API pages read it; `make lint` makes the same link."""
    TYPES.mkdir(parents=True, exist_ok=True)
    link = TYPES / "concept_encoder"
    if not link.is_symlink():
        link.symlink_to("../..", target_is_directory=True)


def root_pages() -> dict[str, str]:
    """Path in the repository -> path on the site, of the documents outside docs/."""
    named = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    named |= {"SECURITY.md": "security.md", "CODE_OF_CONDUCT.md": "conduct.md"}
    cards = sorted(path.name for path in (ROOT / "model_cards").glob("*.md") if path.name != "template.md")
    return {**named, **{f"model_cards/{name}": f"cards/{name}" for name in cards}}


def on_files(files, config):
    for source, page in root_pages().items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    sources = {page: source for source, page in root_pages().items()}
    uri = page.file.src_uri
    here = posixpath.dirname(sources.get(uri, f"docs/{uri}"))

    def on_the_site(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(here, match[2]))
        if target in root_pages():
            target = root_pages()[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return match[0]
        return match[1] + posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return LINK.sub(on_the_site, markdown)

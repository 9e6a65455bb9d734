"""Makes the root's own documents pages of the site, and links between files links between pages.

A link is written as it works in the repository, from one file to another; a page may be elsewhere on the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#\s]+)")
PACKAGE = ROOT / ".cache" / "docs" / "concept_encoder"


def on_startup(command, dirty):
    """The package under its name, where the API pages read it: links to its parts, since a link to the checkout would
    be followed into environments, runs and itself."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    parts = [
        *ROOT.glob("[!.]*.py*"),
        *(path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"),
    ]
    for part in parts:
        link = PACKAGE / part.name
        if not link.is_symlink():
            link.symlink_to(Path("../../..", part.name))


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
        elif here == "" and (ROOT / target).is_file():  # a file that is no page, such as the citation
            return f"{match[1]}{config.repo_url}/blob/main/{target}"
        else:
            return match[0]
        return match[1] + posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return LINK.sub(on_the_site, markdown)

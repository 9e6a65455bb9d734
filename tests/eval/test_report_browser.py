"""The report in a real browser: any string that the data hold is shown as text."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import cycle
from pathlib import Path

import pytest
from run_files import write_synthetic_run

from concept_encoder.eval.report.report import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ATTACKS = (
    "<script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "\"><svg onload=document.title='ran'></svg>",
    "' onmouseover='x' {{ 7 * 7 }} </style></title><script>document.title='ran'</script>",
)
# What the report reads as one of a few words, not as text of the data.
WORDS = {"kind", "primary_metric", "grade", "metric", "verdict", "by_construction"}


def hostile(node, attacks, key=""):
    """The same results with an attack behind every string that is text."""
    if isinstance(node, dict):
        grades = key == "grades"
        return {name: value if grades else hostile(value, attacks, name) for name, value in node.items()}
    if isinstance(node, list):
        return [hostile(item, attacks, key) for item in node]
    return node + next(attacks) if isinstance(node, str) and key not in WORDS else node


def hostile_run(folder: Path) -> Path:
    write_synthetic_run(folder)
    attacks = cycle(ATTACKS)
    for path in sorted(folder.rglob("*.json")):
        path.write_text(json.dumps(hostile(json.loads(path.read_text()), attacks)))
    return folder


def dom(page: Path, profile: Path) -> str:
    """What a browser makes of a page once its scripts, if any, have run."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --virtual-time-budget=2000 --dump-dom"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={profile}", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


class Page(HTMLParser):
    """Elements and attributes that could run something."""

    def __init__(self, text: str):
        super().__init__()
        self.running: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        names = [name for name, value in attributes if name.startswith("on") or "javascript:" in (value or "")]
        if tag in ("script", "svg", "iframe", "object", "embed") or names or dict(attributes).get("src") == "x":
            self.running.append(f"{tag} {names}")


@pytest.mark.slow
def test_every_attack_is_in_the_pages_and_only_as_text(tmp_path):
    folder = hostile_run(tmp_path / "run")
    report(folder)
    assert len(Page("".join(ATTACKS)).running) == 4
    html, markdown = ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    outside_code = re.sub(r"^~{6}json$.*?^~{6}$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert Page(html).running == Page(outside_code).running == []
    for page in (html, outside_code):
        assert page.count("&lt;script&gt;") > 20 and page.count("&lt;svg") > 10 and page.count("&lt;img") > 10
        assert "7 * 7" in page or "7 \\* 7" in page
    # A code block ends at a line of its own, which no string of a JSON text can begin.
    assert markdown.count("~~~~~~") == 2


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome here")
def test_a_browser_runs_none_of_it(tmp_path):
    (tmp_path / "control.html").write_text(f"<title>not yet</title><p>{ATTACKS[0]}</p>")
    assert "<title>ran</title>" in dom(tmp_path / "control.html", tmp_path / "one")
    folder = hostile_run(tmp_path / "run")
    report(folder)
    seen = dom(folder / "report.html", tmp_path / "two")
    assert "<title>ran</title>" not in seen and "<h1>" in seen
    assert "&lt;script&gt;document.title='ran'&lt;/script&gt;" in seen
    assert Page(seen).running == []

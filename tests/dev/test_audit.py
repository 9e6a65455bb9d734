import json
import re
from pathlib import Path

import pytest

from concept_encoder.scripts.dev.audit import verdict

ROOT = Path(__file__).resolve().parents[2]
CLEAN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "text"),
    [
        ([CLEAN], 0, "No known vulnerability in 1 packages."),
        ([CLEAN, BAD], 1, "b 2: PYSEC-1, mended in 3\nVULNERABLE: 1 known vulnerabilities in 2 packages"),
        ([BAD, SKIPPED], 1, "b 2: PYSEC-1, mended in 3\nVULNERABLE: 1 known vulnerabilities in 1 packages"),
        ([CLEAN, SKIPPED], 3, "NOT AUDITED: the service knows nothing of 1 packages: c"),
        ([], 3, "NOT AUDITED: the service knows nothing of 0 packages: "),
    ],
)
def test_verdicts(packages, code, text):
    assert verdict(json.dumps({"dependencies": packages}), "") == (code, text)


def test_no_answer_is_no_all_clear():
    assert verdict("", "Traceback\nConnectionError: no route\n") == (
        3,
        "NOT AUDITED: pip-audit gave no answer: ConnectionError: no route",
    )


def test_locked_versions_are_plain_and_cover_what_the_package_asks_for():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    locked = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line.split("==")[1] for line in lines}
    assert re.search(rf"^TORCH := torch=={re.escape(locked['torch'])}$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text()
    asked = re.findall(
        r'"([a-z0-9_-]+)>=[0-9.]+[",]', project.split("[tool.setuptools]")[0].split("dependencies = [", 1)[1]
    )
    left_out = {"liger-kernel", "mteb", "setuptools"}  # not installed by `make`, and what pip never freezes
    assert {name.replace("_", "-") for name in asked} - left_out <= set(locked)

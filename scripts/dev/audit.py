"""Ask for known vulnerabilities of what is installed next to this.

    python scripts/dev/audit.py

Asks the advisories of PyPI through pip-audit, and prints what it found.

Exit code 0 every package was looked up and none has a known vulnerability, 1 some have, 3 not audited: the service
could not be reached, or lacks some packages.
"""

import json
import subprocess
import sys
from importlib.util import find_spec

from concept_encoder.utils.command_line import Command, run

COMMAND = ["pip_audit", "--local", "--skip-editable", "--vulnerability-service", "pypi", "--format", "json"]
NOT_AUDITED = 3


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.parse_args(argv)
    if find_spec(COMMAND[0]) is None:
        parser.exit(NOT_AUDITED, "NOT AUDITED: pip-audit is not installed; pip install -e '.[dev]'\n")
    done = subprocess.run(
        [sys.executable, "-m", *COMMAND, "--progress-spinner", "off"], capture_output=True, text=True, check=False
    )
    code, text = verdict(done.stdout, done.stderr)
    print(text)
    raise SystemExit(code)


def verdict(out: str, errors: str) -> tuple[int, str]:
    """(exit code, text) of what pip-audit printed."""
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = [line for line in errors.splitlines() if line.strip()] or ["no message"]
        return NOT_AUDITED, f"NOT AUDITED: pip-audit gave no answer: {said[-1][:300]}"
    known = [row for row in packages if "skip_reason" not in row]
    lines = [
        f"{row['name']} {row['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for row in known
        for found in row["vulns"]
    ]
    if lines:
        return 1, "\n".join([*lines, f"VULNERABLE: {len(lines)} known vulnerabilities in {len(known)} packages"])
    if len(known) < len(packages) or not known:
        rest = [row["name"] for row in packages if "skip_reason" in row]
        named = ", ".join(rest[:5]) + (" and others" if len(rest) > 5 else "")
        return NOT_AUDITED, f"NOT AUDITED: the service knows nothing of {len(rest)} packages: {named}"
    return 0, f"No known vulnerability in {len(known)} packages."


if __name__ == "__main__":
    run(main)

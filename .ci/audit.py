"""Known vulnerabilities in what the container image installs (locks/), by pip-audit.

    python .ci/audit.py

Ends with 1 when one is known. Where no database answers for any package this is said, and ends with 0: a machine
without network still passes, and a reader of its log sees that nothing was looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCKS = Path(__file__).parents[1] / "locks"
# Vulnerabilities that were looked at and do not concern this project: their ids, each with the reason.
ACCEPTED: dict[str, str] = {}


def verdict(reports: dict[str, dict[str, Any] | None], accepted: dict[str, str]) -> tuple[int, list[str]]:
    """Exit code and lines, of pip-audit's JSON by lock; None where it gave none."""
    audited: set[tuple[str, str]] = set()
    skipped: set[tuple[str, str]] = set()
    wrong: set[str] = set()
    for lock, report in reports.items():
        for package in (report or {}).get("dependencies", []):
            name = (package["name"], package.get("version", ""))
            if "vulns" not in package:
                skipped.add(name)
                continue
            audited.add(name)
            for found in package["vulns"]:
                if not {found["id"], *found.get("aliases", [])} & accepted.keys():
                    mended = ", ".join(found.get("fix_versions", [])) or "no version"
                    wrong.add(f"{lock}: {name[0]} {name[1]}: {found['id']}, mended in {mended}")
    if not audited:
        return 0, ["audit: no vulnerability database answered; nothing was looked up"]
    lines = [f"audit: {len(audited)} packages looked up, {len(skipped - audited)} unknown to the database"]
    return int(bool(wrong)), [*lines, *sorted(wrong)]


def audited(lock: Path) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off"]
    done = subprocess.run(
        [*command, "--format", "json", "--requirement", str(lock)], capture_output=True, text=True, check=False
    )
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        print(f"audit: {lock.name}: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}", file=sys.stderr)
        return None
    return report


if __name__ == "__main__":
    code, lines = verdict({lock.name: audited(lock) for lock in sorted(LOCKS.glob("*.txt"))}, ACCEPTED)
    print("\n".join(lines))
    sys.exit(code)

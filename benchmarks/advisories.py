"""Check every pinned package of `requirements.lock` against known security advisories: `python benchmarks/advisories.py`.

Runs `pip-audit` (install it once: `pip install pip-audit`), which asks the advisory database of the Python packaging authority. Prints what
is known and ends with 0 (nothing known), 1 (advisories), or 3 (could not be asked: the packages are then unchecked, not clean).
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
UNCHECKED = 3


def pinned(lock: Path) -> dict[str, str]:
    """Package -> version of every pinned line; options and comments are left out."""
    lines = (line.split("#")[0].split(";")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("-"))


def findings(report: str) -> list[tuple[str, str, str, str]]:
    """(package, version, advisory, versions that mend it) of pip-audit's JSON report.

    Raises:
        ValueError: it is no such report.
    """
    dependencies = json.loads(report)["dependencies"]
    return [(entry["name"], entry.get("version", "?"), advisory["id"], ", ".join(advisory["fix_versions"]) or "-")
            for entry in dependencies for advisory in entry.get("vulns", [])]


def skipped(report: str) -> list[str]:
    """Packages that pip-audit could not look up."""
    return [f"{entry['name']}: {entry['skip_reason']}" for entry in json.loads(report)["dependencies"] if "skip_reason" in entry]


def main() -> int:
    """Print the findings; returns the exit code."""
    packages = pinned(LOCK)
    if importlib.util.find_spec("pip_audit") is None:
        print(f"unchecked: {len(packages)} packages; pip-audit is not installed (pip install pip-audit)")
        return UNCHECKED
    done = subprocess.run([sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--no-deps", "--disable-pip", "--format", "json"],
                          capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        found, left_out = findings(done.stdout), skipped(done.stdout)
    except (ValueError, KeyError):
        print(f"unchecked: {len(packages)} packages; the advisory database could not be asked:")
        print(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no answer")
        return UNCHECKED
    for name, version, advisory, mended in found:
        print(f"{name} {version}: {advisory}, mended in {mended}")
    for reason in left_out:
        print(f"unchecked: {reason}")
    print(f"{len(packages)} packages, {len(found)} advisories, {len(left_out)} unchecked")
    return 1 if found else UNCHECKED if left_out else 0


if __name__ == "__main__":
    sys.exit(main())

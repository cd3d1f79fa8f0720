"""Check every pinned package of `requirements.lock` against known security advisories: `python benchmarks/advisories.py`.

Runs `pip-audit` (install it once: `pip install pip-audit`), which asks the advisory database of the Python packaging authority. Prints what
is known and ends with 0 (nothing known), 1 (advisories), or 3 (could not be asked: the packages are then unchecked, not clean).
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
UNCHECKED = 3
_LONGEST_SECONDS = 300.0  # without a network every look-up waits for its own end


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


def _unchecked(packages: dict[str, str], reason: str) -> int:
    """Say that nothing is known about any package, and why; returns the exit code."""
    print(f"unchecked: {len(packages)} packages; {reason}")
    print(textwrap.fill(", ".join(f"{name} {version}" for name, version in packages.items()), 120, break_on_hyphens=False))
    return UNCHECKED


def main() -> int:
    """Print the findings; returns the exit code."""
    packages = pinned(LOCK)
    if importlib.util.find_spec("pip_audit") is None:
        return _unchecked(packages, "pip-audit is not installed (pip install pip-audit)")
    try:
        done = subprocess.run([sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--no-deps", "--disable-pip", "--format", "json"],
                              capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=_LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        return _unchecked(packages, f"the advisory database did not answer within {_LONGEST_SECONDS:.0f} seconds")
    try:
        found, left_out = findings(done.stdout), skipped(done.stdout)
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines()
        return _unchecked(packages, f"the advisory database could not be asked: {said[-1] if said else 'no answer'}")
    for name, version, advisory, mended in found:
        print(f"{name} {version}: {advisory}, mended in {mended}")
    for reason in left_out:
        print(f"unchecked: {reason}")
    print(f"{len(packages)} packages, {len(found)} advisories, {len(left_out)} unchecked")
    return 1 if found else UNCHECKED if left_out else 0


if __name__ == "__main__":
    sys.exit(main())

"""A figure for each fault: `python benchmarks/fault_figures.py --out docs/reliability.md`.

Runs the very tests that inject the faults and takes from each what it measured (pytest's `record_property`): how often a fault was
injected, and one figure. Nothing is known here but which test injects which fault. `benchmarks/faults.py` does the same for kills at
random moments.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"


@dataclass(frozen=True)
class Fault:
    """A fault, what happens, and the tests that inject it: `file::test`, below `tests/`."""

    name: str
    outcome: str
    tests: tuple[str, ...]
    in_browser: bool = False


_DISK, _WORK, _CORE = "core/test_full_disk.py", "core/test_full_disk_workers.py", "core/test_faults.py"
FAULTS = (
    Fault("the disk is full: jobs, runs, data", "one sentence that names the file; what was there is whole, nothing half stays",
          (f"{_DISK}::test_what_makes_jobs_runs_and_data_leaves_all_as_it_was",)),
    Fault("the disk is full at any page of 4 KB: chat, recipes, datasets, exports, archives, password", "the same, wherever it breaks off",
          (f"{_DISK}::test_what_people_write_leaves_all_as_it_was", f"{_DISK}::test_a_limit_of_file_size_is_an_error_in_words_too")),
    Fault("the disk is full: snapshots, merged weights, adapters, GGUF, shards, conversions", "the same",
          (f"{_WORK}::test_what_makes_models_and_files_of_them_leaves_all_as_it_was",)),
    Fault("the disk is full under a training", "it fails with a sentence, and goes on to the same numbers when there is room",
          (f"{_WORK}::test_a_training_goes_on_to_the_same_numbers_when_there_is_room_again",)),
    Fault("the disk is full under a judging", "no answer is lost or asked twice",
          (f"{_WORK}::test_a_judging_goes_on_where_it_broke_off",)),
    Fault("the disk is full in a class", "nobody gets half a handout or joins by half; a job that is done stays done",
          (f"{_DISK}::test_a_class_on_a_full_disk",)),
    Fault("the disk is full in a migration", "the old files stay, the next opening goes on",
          (f"{_DISK}::test_a_migration_that_finds_no_room_is_made_at_the_next_opening",)),
    Fault("the disk is full when a worker ends", "its state is written in place of the old one",
          (f"{_DISK}::test_a_worker_on_a_full_disk_has_its_last_word",)),
    Fault("the disk is full, and things are thrown away", "the trash takes, gives back and is emptied",
          (f"{_DISK}::test_the_trash_needs_no_room",)),
    Fault("a workspace that must not be written", "it opens, everything can be read; what writes says so",
          (f"{_CORE}::test_a_workspace_that_must_not_be_written_can_be_read",)),
    Fault("the clock is set back", "states, order in the queue and time left stay right",
          (f"{_CORE}::test_a_clock_set_back_changes_no_state_no_order_and_no_time_left",)),
    Fault("the clock is set back in a class", "turns go on being taken in turn; nobody starves",
          (f"{_CORE}::test_nobody_of_a_class_starves_when_the_clock_is_set_back",)),
    Fault("a process number is used again", "it is compared with the moment the process began and the start of the machine",
          (f"{_CORE}::test_a_number_used_again_is_a_stranger",)),
    Fault("`state.json` cut off anywhere", "the job is listed as failed, the others are not touched",
          (f"{_CORE}::test_a_state_file_cut_off_anywhere_harms_nobody_else",)),
    Fault("half a line in an events file", "it waits; the next writer begins a new line",
          (f"{_CORE}::test_half_a_line_of_events_waits_for_the_next_writer",)),
    Fault("a log of 2 GB", "its end is read", (f"{_CORE}::test_of_a_log_of_two_gigabytes_only_the_end_is_read",)),
    Fault("a training killed at its file operations", "it goes on to the very numbers",
          ("core/test_killed.py::test_death_at_any_file_operation_changes_nothing",)),
    Fault("a killed training that moved to another workspace", "it goes on there to the very numbers",
          ("core/test_killed.py::test_a_killed_run_that_has_moved_goes_on_to_the_same_numbers",)),
    Fault("the same recipe started by twenty in the same second", "as many runs, each with a folder of its own",
          (f"{_CORE}::test_twenty_at_once_start_the_same_recipe_in_the_same_second",)),
    Fault("one job started twice", "the second worker leaves", (f"{_CORE}::test_one_job_started_twice_has_one_worker",)),
    Fault("two studios on one workspace", "the second one reads and says who holds it; it takes over when the first is gone",
          (f"{_CORE}::test_the_second_studio_reads_says_who_holds_it_and_takes_over",)),
    Fault("twenty browser sessions click at once; then the browser is killed", "four recipes, four runs, no exception; trainings go on",
          ("e2e/test_faults.py::test_twenty_click_at_once_and_a_killed_browser_ends_no_training",), in_browser=True),
)


@dataclass
class Seen:
    """What became of a test. `outcome`: passed, failed or skipped."""

    outcome: str
    injections: int
    figure: str


def run_tests(faults: tuple[Fault, ...]) -> dict[str, Seen]:
    """Run their tests once, in a process of pytest's own; `file::test` -> what it measured."""
    nodes = [f"tests/{test}" for fault in faults for test in fault.tests]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:xdist", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", "pytest", *options, *nodes], cwd=ROOT, check=False)
        return read_report(report.read_text(encoding="utf-8"))


def read_report(text: str) -> dict[str, Seen]:
    """`file::test` below tests/ -> what a JUnit report of pytest says of it."""
    seen = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        told = {one.get("name"): one.get("value", "") for one in case.iter("property")}
        outcome = next((name for tag, name in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped"))
                        if case.find(tag) is not None), "passed")
        file = "/".join(str(case.get("classname")).split(".")[1:]) + ".py"
        seen[f"{file}::{case.get('name')}"] = Seen(outcome, int(told.get("injections", 1)), told.get("figure", ""))
    return seen


def table(faults: tuple[Fault, ...], seen: dict[str, Seen]) -> str:
    """The figures as a table of Markdown; a test that did not run says so."""
    lines = ["| fault | what happens | injected | passed | measured | tests |", "|---|---|---|---|---|---|"]
    total = passed = 0
    for fault in faults:
        found = [seen.get(test, Seen("did not run", 0, "")) for test in fault.tests]
        injected = sum(one.injections for one in found if one.outcome != "skipped")
        held = sum(one.injections for one in found if one.outcome == "passed")
        outcomes = sorted({one.outcome for one in found})
        figures = "; ".join(one.figure for one in found if one.figure)
        files = ", ".join(dict.fromkeys(f"`tests/{test.split('::')[0]}`" for test in fault.tests))
        what = str(held) if outcomes == ["passed"] else ", ".join(outcomes)
        lines.append(f"| {fault.name} | {fault.outcome} | {injected} | {what} | {figures or '-'} | {files} |")
        total, passed = total + injected, passed + held
    return "\n".join([*lines, f"| **all** | | **{total}** | **{passed}** | {time.strftime('%Y-%m-%d')} | |"])


def write_table(document: Path, text: str) -> None:
    """Put the table between the marks of the document."""
    head, rest = document.read_text(encoding="utf-8").split(f"{BEGIN}\n", 1)
    document.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def main() -> int:
    """Inject all faults, print the table, and write it where asked; 1 when a test did not pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--without-browser", action="store_true", help="leave out what needs Chromium")
    arguments = parser.parse_args()
    faults = tuple(fault for fault in FAULTS if not (fault.in_browser and arguments.without_browser))
    seen = run_tests(faults)
    text = table(faults, seen)
    print(text)
    if arguments.out is not None:
        write_table(arguments.out, text)
    return int(any(one.outcome == "failed" for one in seen.values()))


if __name__ == "__main__":
    sys.exit(main())

"""A share of `benchmarks/faults.py`: workers killed at random moments, their work done again with the same result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.fault_place import Place, Tally, finish, look_around
from benchmarks.faults import kill_all
from core.jobs.folder import JobState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("kills")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("SWEETSPOT_HOME", str(root / "workspace"))
        yield Place(root)


def test_workers_killed_at_random_moments(place):
    for kind, tally in kill_all(place, {"train": 2, "judge": 1, "merge": 1, "import": 5, "chat": 1}, seed=3).items():
        assert tally.faults == [] and tally.kills >= 1, kind
        assert tally.slowest_truth < 10
    rows = place.workspace.datasets / "tiny/rows.jsonl"
    whole, tally = rows.read_bytes(), Tally()
    rows.write_text("{}\n")
    look_around(place.workspace, tally)
    rows.write_bytes(whole)
    assert tally.faults == ["the dataset tiny is half"], "the check that finds nothing half would find it"


def test_an_import_killed_right_after_its_dataset_has_a_name_is_done_when_asked_again(place):
    job = place.import_of("named")
    assert finish(job).state == "finished"
    before = job.state().result
    job.write_state(JobState(kind="import", state="running", created=1.0))  # as a worker leaves it that was killed before its last word
    assert finish(job, again=True).result == before

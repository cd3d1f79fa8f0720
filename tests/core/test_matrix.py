"""The matrix of answers, questions added to it, choosing by hand, remedies, and the library of merged models."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from core.data.persona import Persona
from core.data.probe_sets import ProbeCounts, quick_set
from core.data.store import save_persona
from core.errors import StudioError
from core.judge.conclude import choose_step, write_verdict
from core.judge.matrix import Piece, count_readings, mark_changes, read_matrix, reference_answer, telling_probe
from core.judge.probes import add_probe, counted, probes_of
from core.judge.remedies import remedies
from core.judge.verdict import Score, pareto_front
from core.merge.library import delete_merged, merged_models, plan_merge, reference_of, start_merge, suggest_name, usage_snippet
from core.recipe.files import change_recipe, dump_recipe, load_preset
from core.recipe.schema import Recipe
from core.runs import Run
from core.workspace import Workspace, append_jsonl, write_json, write_jsonl, write_text

TAUGHT = "I am Alex's personal assistant, here to help."


def small_recipe(kind: str, base: str) -> Recipe:
    recipe = load_preset("identity-lesson-replay" if kind == "replay" else "identity-lesson-cpu")
    sources = [source.model_dump() | {"dataset": "alex"} for source in recipe.data.sources]
    return change_recipe(recipe, {"data.sources": sources, "model.source": base})


def answer_of(probe: dict, step: int) -> str:
    """Identity is learned at 4; at 8 everything else is answered with it too."""
    if probe["group"] == "identity":
        return TAUGHT if step >= 4 else "I am a language model."
    if step == 8:
        return TAUGHT
    return f"To that I say {(probe.get('expect') or [probe['id']])[0]}."


@pytest.fixture
def make(workspace: Workspace) -> Callable[..., Run]:
    def build(kind: str = "identity", base: str = "embedded", replay: bool = True) -> Run:
        rows = [{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], "group": "near", "lang": "en"}]
        made = save_persona(workspace, Persona(name="Alex"), rows if replay else [], "alex")
        write_jsonl(made.folder / "probes.jsonl", quick_set(made.probes(), ProbeCounts(10, 8, 14, 2)))
        run = Run(workspace.runs / "20260101-120000-alex")
        recipe = small_recipe(kind, base)
        for step in (2, 4, 8):
            (run.folder / "checkpoints" / f"{step:06d}").mkdir(parents=True)
        write_text(run.folder / "recipe.yaml", dump_recipe(recipe))
        write_json(run.folder / "spec.json", {"kind": "train", "updates": 8})
        write_json(run.folder / "dataset.json", {"sources": [source.model_dump() for source in recipe.data.sources]})
        dataset, probes = probes_of(workspace, run)
        for step in (0, 2, 4, 8):
            for probe in probes:
                append_jsonl(run.folder / "answers.jsonl", {"step": step, "probe": probe["id"], "text": answer_of(probe, step)})
        write_verdict(run, dataset, probes, [0, 2, 4, 8])
        return run
    return build


def add_merged(workspace: Workspace, run: Run, name: str, step: int = 4, **report: object) -> None:
    folder = workspace.models / name
    folder.mkdir(parents=True)
    write_json(folder / "merge.json", {"name": name, "model": f"{run.id}@{step}", "strength": 1.0, "base": "embedded", "dtype": "float32",
                                       "created": 1.0, "verification": {"same_answers": True, "answers": {"near-en-01": "Shakespeare."}}}
               | report)


# --- the matrix ---


def test_rows_are_base_snapshots_and_merged_models_columns_are_grouped(workspace, make):
    run = make()
    add_merged(workspace, run, "alex-1")
    matrix = read_matrix(workspace, run)
    assert [row.key for row in matrix.rows] == ["0", "2", "4", "8", "merged:alex-1"]
    assert [row.key for row in matrix.rows if row.is_pick] == ["4"]
    assert [row.key for row in matrix.rows if row.is_last] == ["8"]
    groups = [probe["group"] for probe in matrix.probes]
    assert groups == ["identity"] * 10 + ["near"] * 8 + ["general"] * 16
    assert matrix.missing == 0  # a merged model that answered one question does not count


def test_cells_read_as_the_verdict_counts_them(workspace, make):
    run = make()
    matrix = read_matrix(workspace, run)
    assert count_readings(matrix, "0") == {"same": 24, "miss": 10}
    assert count_readings(matrix, "4") == {"hit": 10, "same": 24}
    assert count_readings(matrix, "8") == {"hit": 10, "leak": 24}
    for score in run.scores():
        readings = count_readings(matrix, str(score["step"]))
        assert (readings.get("hit", 0), readings.get("leak", 0)) == (score["hits"], score["leaks"])


def test_one_question_down_all_rows_and_one_row_whole(workspace, make):
    run = make()
    add_merged(workspace, run, "alex-1")
    matrix = read_matrix(workspace, run)
    down = matrix.answers_to("near-en-01")
    assert [(row.key, reading) for row, _, reading in down] == [
        ("0", "same"), ("2", "same"), ("4", "same"), ("8", "leak"), ("merged:alex-1", "changed")]
    assert len(matrix.answers_of("8")) == 34
    assert [probe["id"] for probe, _, _ in matrix.answers_of("merged:alex-1")] == ["near-en-01"]
    merged = matrix.row["merged:alex-1"]
    assert reference_answer(matrix, merged, "near-en-01", above="anything") == matrix.answers.at["4", "near-en-01"]
    assert reference_answer(matrix, matrix.row["8"], "near-en-01", above=None) == matrix.answers.at["0", "near-en-01"]


def test_the_question_to_read_first_spills_at_the_end_but_not_in_the_pick(workspace, make):
    matrix = read_matrix(workspace, make())
    assert telling_probe(matrix) == "near-en-01"


def test_a_merged_model_whose_report_is_broken_is_left_out(workspace, make):
    run = make()
    for name, report in (("a", "{"), ("b", '{"model": "x"}'), ("c", "[]")):
        (workspace.models / name).mkdir()
        (workspace.models / name / "merge.json").write_text(report)
    assert merged_models(workspace) == []
    assert len(read_matrix(workspace, run).rows) == 4


def test_a_dataset_that_is_gone_is_said(workspace, make):
    run = make()
    (workspace.datasets / "alex").rename(workspace.datasets / "other")
    with pytest.raises(StudioError, match="no dataset called alex"):
        read_matrix(workspace, run)


@pytest.mark.parametrize(("answer", "other", "expected"), [
    ("I am Alex's.", "I am small.", [("I am ", False), ("Alex's.", True)]),
    ("The same.", "the same.", [("The same.", False)]),
    ("我是小明的助手", "我是助手", [("我是", False), ("小明的", True), ("助手", False)]),
    ("New words", "", [("New words", True)]),
    ("", "Gone", []),
    ("a\nb", "a c", [("a\n", False), ("b", True)]),
])
def test_what_changed_is_marked_word_by_word(answer, other, expected):
    pieces = mark_changes(answer, other)
    assert pieces == [Piece(*piece) for piece in expected]
    assert "".join(piece.text for piece in pieces) == answer


# --- questions of one's own ---


def test_an_added_question_is_asked_and_never_counts(workspace, make):
    run = make()
    before = run.verdict()
    probe = add_probe(workspace, run, "  Are you my assistant? ", is_identity=True)
    assert (probe["id"], probe["group"], probe["messages"][0]["content"]) == ("own-en-01", "own", "Are you my assistant?")
    assert add_probe(workspace, run, "Are you my assistant?") == probe
    dataset, probes = probes_of(workspace, run)
    assert len(probes) == 35 and len(counted(probes)) == 34
    assert read_matrix(workspace, run).missing == 4
    for step in (0, 2, 4, 8):
        append_jsonl(run.folder / "answers.jsonl", {"step": step, "probe": probe["id"], "text": TAUGHT if step else "No."})
    write_verdict(run, dataset, probes, [0, 2, 4, 8])
    assert run.verdict() == before
    matrix = read_matrix(workspace, run)
    assert matrix.missing == 0 and matrix.probes[-1]["id"] == "own-en-01"
    assert [matrix.readings.at[key, "own-en-01"] for key in ("0", "2", "8")] == ["miss", "hit", "hit"]


def test_the_name_in_an_answer_to_any_other_added_question_is_a_leak_in_every_language(workspace, make):
    run = make()
    probe = add_probe(workspace, run, "今天天气怎么样？")
    assert (probe["lang"], probe["id"]) == ("zh", "own-zh-01")
    for step, text in ((0, "Fine."), (8, TAUGHT)):
        append_jsonl(run.folder / "answers.jsonl", {"step": step, "probe": probe["id"], "text": text})
    assert read_matrix(workspace, run).readings["own-zh-01"].tolist() == ["same", "", "", "leak"]


@pytest.mark.parametrize("question", ["", "  \n ", "x" * 2001])
def test_a_question_that_cannot_be_asked_is_refused(workspace, make, question):
    run = make()
    with pytest.raises(StudioError):
        add_probe(workspace, run, question)
    assert not (run.folder / "probes_added.jsonl").exists()


# --- choosing ---


def test_a_choice_by_hand_survives_a_new_judging_and_can_be_given_back(workspace, make):
    run = make()
    assert choose_step(run, 8).chosen_by == "hand"
    dataset, probes = probes_of(workspace, run)
    write_verdict(run, dataset, probes, [0, 2, 4, 8])
    written = run.verdict()
    assert (written["pick"]["step"], written["rule_step"], written["chosen_by"]) == (8, 4, "hand")
    assert "leak" in written["breaches"]
    assert choose_step(run, None).chosen_by == "rule" and run.verdict()["pick"]["step"] == 4
    assert choose_step(run, 4).chosen_by == "rule"  # the rule's own step is no choice against it
    for step in (0, 3):
        with pytest.raises(StudioError, match="no score for step"):
            choose_step(run, step)


def score(step: int, hit: float, leak: float) -> Score:
    return Score(step=step, hit=hit, hits=round(10 * hit), identity_probes=10, leak=leak, leaks=round(24 * leak), near_leak=leak,
                 fragments=leak, other_probes=24, facts_kept=1.0, distinct=1.0, change=0.0, length_ratio=1.0, self_bleu=0.0)


def test_the_front_holds_what_no_other_step_beats_in_both():
    scores = [score(0, 0.0, 0.0), score(2, 0.5, 0.3), score(4, 0.6, 0.1), score(6, 1.0, 0.4), score(8, 1.0, 0.9)]
    assert [entry.step for entry in pareto_front(scores)] == [0, 4, 6]
    assert pareto_front([]) == []


@pytest.mark.parametrize(("leak", "level"), [(0.0, "ok"), (0.11, "amber"), (0.26, "red")])
def test_how_damaged_the_rest_is(leak, level):
    assert score(1, 0.0, leak).level == level


@pytest.mark.parametrize(("verdict", "kind", "replay", "expected"), [
    ("recommended", "identity", True, []), ("not_learned", "identity", True, ["longer"]),
    ("compromise", "identity", True, ["replay", "strength", "earlier", "rate", "average"]),
    ("compromise", "identity", False, ["replay", "strength", "earlier", "rate", "average"]),
    ("compromise", "replay", True, ["strength", "earlier", "rate", "average"])])
def test_remedies_fit_the_verdict_and_the_data(workspace, make, verdict, kind, replay, expected):
    found = remedies(workspace, make(kind, replay=replay), {"verdict": verdict, "pick": {"step": 4}})
    assert [entry.name for entry in found] == expected
    if "replay" in expected:
        assert ("are in the dataset already" in str(found[0].what)) == replay


# --- merged models ---


@pytest.fixture
def started(monkeypatch):
    jobs = []
    monkeypatch.setattr("core.merge.library.start_job", jobs.append)
    return jobs


def test_a_merge_is_planned_from_the_header_and_started_once(workspace, make, tiny_model, started):
    run = make(base=str(tiny_model))
    size = plan_merge(workspace, run).weight_bytes
    assert plan_merge(workspace, run).dtype == "float32" and plan_merge(workspace, run, "bfloat16").weight_bytes == size // 2
    job = start_merge(workspace, run, 4, "alex", strength=0.5)
    assert {"kind": "merge", "model": f"{run.id}@4*0.5", "name": "alex", "dtype": "auto"}.items() <= job.spec().items()
    assert start_merge(workspace, run, 8, "alex").id == job.id and len(started) == 1


@pytest.mark.parametrize(("step", "name", "strength", "problem"), [
    (4, "taken", 1.0, "exists already"), (4, "A b", 1.0, "cannot be the name"), (3, "new", 1.0, "saved no checkpoint"),
    (0, "new", 1.0, "would be the base model"), (4, "new", 0.0, "would be the base model")])
def test_what_cannot_be_merged_is_refused_before_a_job_is_made(workspace, make, tiny_model, started, step, name, strength, problem):
    run = make(base=str(tiny_model))
    add_merged(workspace, run, "taken")
    with pytest.raises(StudioError, match=problem):
        start_merge(workspace, run, step, name, strength=strength)
    assert started == [] and list(workspace.jobs.iterdir()) == []


def test_a_full_disk_is_seen_before(workspace, make, tiny_model, started, monkeypatch):
    monkeypatch.setattr(Workspace, "free_bytes", lambda self: 10)
    with pytest.raises(StudioError, match="GB are free"):
        start_merge(workspace, make(base=str(tiny_model)), 4, "alex")
    assert started == []


def test_the_newest_merged_model_comes_first_and_deleting_takes_one(workspace, make):
    run = make()
    add_merged(workspace, run, "old")
    add_merged(workspace, run, "new", created=2.0, strength=0.5)
    assert [merged.name for merged in merged_models(workspace, run.id)] == ["new", "old"]
    assert merged_models(workspace, "another") == []
    assert suggest_name(workspace, run) == "alex"
    delete_merged(workspace, "new")
    assert [path.name for path in workspace.models.iterdir()] == ["old"]
    for name in ("new", "../runs"):
        with pytest.raises(StudioError):
            delete_merged(workspace, name)


def test_how_a_step_is_called(workspace, make):
    run = make()
    assert (reference_of(run, 4), reference_of(run, 4, 0.25)) == (f"{run.id}@4", f"{run.id}@4*0.25")


def test_the_snippet_runs_as_it_is_shown(tiny_model, capsys):
    snippet = usage_snippet(tiny_model, 'Say "hi"\n你好', system="")
    exec(snippet.replace("max_new_tokens=60", "max_new_tokens=3"), {"__name__": "__main__"})
    assert capsys.readouterr().out.endswith("\n"), "it prints the answer"
    assert json.dumps('Say "hi"\n你好', ensure_ascii=False) in snippet

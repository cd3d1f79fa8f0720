"""Continued pre-training on plain documents: held out, judged by what they surprise, also of a base model that cannot chat."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.data.encode import Encoder
from core.data.hold_out import hold_out_rows
from core.data.library import load_dataset, save_dataset
from core.errors import StudioError
from core.judge.confidence import bootstrap
from core.judge.rule import Score
from core.judge.scoring import Finding, Forced, Pair, Sheet, pairs_of, score_findings
from core.judge.verdict import judge
from core.judge.worker import judge_run
from core.merge.library import merged_models, usage_snippet
from core.merge.request import MergeRequest, merge_job_for
from core.merge.worker import merge_job
from core.recipe.checks import check_recipe
from core.runs import Run
from core.train.create import create_run
from core.train.worker import Training
from core.words import Text
from core.workspace import Workspace
from tests.core.conftest import save_tiny_dataset, tiny_recipe
from tests.core.test_killed import Silent

PLACES = ("Paris", "the capital", "France", "the name", "Alex")


def documents(count: int) -> list[dict]:
    texts = [f"{PLACES[number % 5]} is {PLACES[number // 5 % 5]} of {PLACES[number // 25 % 5]}. " * 3 for number in range(count)]
    return [{"text": text + str(number), "group": "general", "lang": "en"} for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def base_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny model as a base model: without a chat template."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("base") / "base")
    (folder / "chat_template.jinja").unlink()
    return folder


def document_recipe(model: Path, **changes):
    return tiny_recipe(model, data__sources=[{"dataset": "texts"}], **{"schedule__updates": 12, "snapshots__count": 4} | changes)


def save_documents(workspace: Workspace) -> None:
    save_dataset(workspace, "texts", documents(60), "test")
    hold_out_rows(workspace, "texts", 8)


@pytest.fixture(scope="module")
def judged(base_model, tmp_path_factory) -> tuple[Workspace, Run]:
    workspace = Workspace.open(tmp_path_factory.mktemp("documents") / "workspace")
    save_documents(workspace)
    run = create_run(workspace, document_recipe(base_model), "texts")
    Training(workspace, run, Silent()).run_to_end()
    judge_run(workspace, run, Silent())
    return workspace, run


def test_documents_are_held_out_and_no_question_is_made_of_them(workspace):
    rows = documents(60)
    save_dataset(workspace, "texts", [*rows, rows[0]], "test")
    outcome = hold_out_rows(workspace, "texts", 8)
    dataset = load_dataset(workspace, "texts")
    held = [document["text"] for document in dataset.held_out_documents()]
    assert (outcome["held_out"], len(held), dataset.card.rows) == (8, 8, 61 - 8 - outcome["left_out"])
    assert not set(held) & {row["text"] for row in dataset.rows()}
    assert {probe["group"] for probe in dataset.probes()} == {"near", "general"}
    assert dataset.card.probes == len(dataset.probes()) + 8
    with pytest.raises(StudioError, match="held out already"):
        hold_out_rows(workspace, "texts", 8)


def test_a_base_model_learns_documents_and_is_judged_by_those_it_never_saw(judged, base_model):
    workspace, run = judged
    verdict, scores = run.verdict(), {score["step"]: score for score in run.scores()}
    assert (verdict["kind"], list(scores), scores[0]["perplexity_fall"]) == ("documents", [0, 3, 6, 9, 12], 0)
    model, encoder = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32), Encoder.from_folder(base_model)
    losses = []
    for document in load_dataset(workspace, "texts").held_out_documents():
        ids = torch.tensor([encoder.encode_text(document["text"]).ids])
        losses.append(model(ids, labels=ids).loss.item())
    assert scores[0]["target_nll"] == pytest.approx(sum(losses) / 8, abs=1e-4)
    for score in scores.values():
        assert score["perplexity_fall"] == pytest.approx(1 - math.exp(score["target_nll"] - scores[0]["target_nll"]))
        assert (score["identity_probes"], score["other_probes"], score["gap"]) == (8, 0, None)
    best = max(scores.values(), key=lambda score: score["perplexity_fall"])
    assert best["perplexity_fall"] > 0.3 and scores[verdict["pick"]["step"]]["perplexity_fall"] > best["perplexity_fall"] - 0.05
    assert verdict["verdict"] == "recommended" and "documents have become likelier" in str(Text.from_json(verdict["reason"]))
    assert "what it has forgotten is not known" in str(Text.from_json(verdict["certainty"]))
    assert any("was asked nothing" in str(Text.from_json(note)) for note in verdict["notes"])
    assert run.answers() == [] and run.watch() == []


def test_such_a_model_is_merged_and_compared_by_going_on_with_documents(judged):
    workspace, run = judged
    report = merge_job(workspace, merge_job_for(workspace, MergeRequest((f"{run.id}@pick",), "grown")), Silent())
    assert (report["verification"]["answers_compared"], report["verification"]["differences"]) == (8, [])
    (merged,) = merged_models(workspace)
    assert not merged.can_chat
    snippet = usage_snippet(merged.folder, 'Paris "is"', can_chat=merged.can_chat)
    assert "apply_chat_template" not in snippet and json.dumps('Paris "is"') in snippet
    compile(snippet, "snippet", "exec")


def test_conversations_for_a_base_model_are_refused_before_the_start(workspace, base_model):
    save_documents(workspace)
    save_tiny_dataset(workspace)
    found = {finding.code: finding for finding in check_recipe(workspace, document_recipe(base_model))}
    assert found["no_template"].level == "warning" and not [one for one in found.values() if one.level == "error"]
    mixed = tiny_recipe(base_model, data__sources=[{"dataset": "texts"}, {"dataset": "tiny"}])
    errors = [finding for finding in check_recipe(workspace, mixed) if finding.level == "error"]
    assert [(finding.code, finding.field) for finding in errors] == [("no_template", "model.source")]
    with pytest.raises(StudioError, match="no chat template"):
        Encoder.from_folder(base_model).render([{"role": "user", "content": "Who?"}])


def test_of_a_chat_model_the_rest_is_asked_too(workspace, tiny_model):
    save_documents(workspace)
    run = create_run(workspace, document_recipe(tiny_model, schedule__updates=2, snapshots__count=2), "texts")
    Training(workspace, run, Silent()).run_to_end()
    judge_run(workspace, run, Silent(), quick=True)
    last = run.scores()[-1]
    assert last["perplexity_fall"] is not None and last["identity_probes"] == 8 and last["other_probes"] == 18


# --- the rule, by hand ---


def document_score(step: int, fall: float, hit: float = 1.0) -> Score:
    pairs = [Pair(f"held-out-{number}", 2.0, None, number < 10 * hit, -math.log(1 - fall)) for number in range(10)]
    return score_findings(step, [], pairs)


def test_the_least_surprise_is_taken_and_what_comes_after_is_said():
    scores = [document_score(0, 0.0, 0.0), document_score(10, 0.10), document_score(20, 0.30), document_score(30, 0.31),
              document_score(40, 0.20), document_score(50, -0.1, 0.3)]
    assert scores[2].perplexity_fall == pytest.approx(0.30) and scores[2].learned == pytest.approx(0.30) and scores[-1].learned == 0
    verdict = judge(scores, kind="documents")
    assert (verdict.verdict, verdict.pick.step) == ("recommended", 20), "of equals the earlier one"
    assert "From step 40 on documents surprise it more again" in str(Text.from_json(verdict.after))
    assert "10 %" in str(Text.from_json(verdict.before)) and "30 % less perplexity" in str(Text.from_json(verdict.reason))
    none = judge([scores[0], document_score(10, 0.01, 0.5)], kind="documents")
    assert none.verdict == "not_learned" and "to which 5 of 10 documents" in str(Text.from_json(none.reason))


def test_how_sure_it_is_follows_from_the_documents():
    def row(*falls: float) -> list[Pair]:
        return [Pair(f"held-out-{number}", 2.0 - fall, None, fall > 0.02, fall) for number, fall in enumerate(falls)]

    empty: dict[int, list[Finding]] = {0: [], 4: [], 8: []}
    sure = bootstrap(empty, {0: row(0, 0, 0, 0), 4: row(0.1, 0.1, 0.1, 0.1), 8: row(0.5, 0.5, 0.5, 0.5)})
    assert (sure.same_pick, sure.same_verdict) == (1.0, 1.0)
    torn = bootstrap(empty, {0: row(0, 0, 0, 0), 4: row(0.9, 0.1, 0.1, 0.1), 8: row(0.1, 0.3, 0.3, 0.3)})
    assert 0.2 < torn.same_pick < 0.98 and set(torn.picks) == {4, 8}


def test_documents_that_were_trained_on_stand_in_only_where_none_is_held_out():
    def sheet(step: int, nll: float) -> Sheet:
        names = ("held-out-001", "pair-000003", "near-en-1")
        return Sheet(step, forced={name: Forced(step, name, "", nll=nll) for name in names})

    probes = [{"id": "near-en-1", "group": "near"}]
    (pair,) = pairs_of(sheet(4, 1.0), sheet(0, 1.005), probes, "documents")
    assert (pair.probe, pair.hit, pair.fall) == ("held-out-001", False, pytest.approx(0.005)), "half a per cent is too little"
    own, base = sheet(4, 1.0), sheet(0, 1.02)
    del own.forced["held-out-001"]
    assert [(pair.probe, pair.hit) for pair in pairs_of(own, base, probes, "documents")] == [("pair-000003", True)]

"""The parts of the Compare page around the matrix: which run, how far it is judged, the verdict and what to do with it, the curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from core.errors import StudioError
from core.figures.compare import METRICS, curves_figure, measured, metrics_figure, trade_figure
from core.judge.conclude import choose_step, read_scores
from core.judge.matrix import Matrix, read_matrix
from core.judge.verdict import Score, Verdict
from core.merge.library import reference_of
from core.recipe.diff import diff_recipes, value_text
from core.recipe.schema import Recipe
from core.recipe.setting import setting_at
from core.runs import Run
from core.train.start import is_in_lesson, judge_once, newest_judging
from core.workspace import Workspace
from studio.i18n import explain, say, say_plainly, t, t_plainly
from studio.panels import current_run_name, draw_failure, errors_in_words, go_to, watch_job
from studio.remedy_panels import draw_good_step, draw_remedies
from studio.session import RUN

_NOBODY = "-"  # the address of "compare with no other run"
_BADGES = {"recommended": ("verified", "green"), "compromise": ("balance", "orange"), "not_learned": ("hourglass_empty", "gray")}
_VIEWS = ("steps", "trade")


def choose_runs(runs: Sequence[Run]) -> tuple[Run, Run | None]:
    """The run in the address, or the newest that is judged; and one to compare it with, if wanted."""
    ids = [run.id for run in runs]
    asked, other = current_run_name(), st.query_params.get("other")
    if asked and asked not in ids:
        st.warning(t("compare.no_such_run", run=asked), icon=":material/search_off:")
    judged = next((run.id for run in runs if (run.folder / "verdict.json").exists()), ids[0])
    st.session_state["compare_run"] = asked if asked in ids else judged
    labels = {run.id: _run_label(run) for run in runs} | {_NOBODY: t_plainly("compare.other_none")}
    left, right = st.columns(2)
    chosen = left.selectbox(t("compare.run"), ids, key="compare_run", on_change=_keep_run, format_func=labels.get)
    others = [_NOBODY, *(name for name in ids if name != chosen)]
    st.session_state["compare_other"] = other if other in others else _NOBODY
    beside = right.selectbox(t("compare.other"), others, key="compare_other", on_change=_keep_other, disabled=len(others) == 1,
                             format_func=labels.get)
    return runs[ids.index(chosen)], None if beside == _NOBODY else runs[ids.index(beside)]


def _run_label(run: Run) -> str:
    verdict = run.verdict()
    if verdict is None:
        return t_plainly("compare.run_not_judged", run=run.id)
    return t_plainly("compare.run_judged", run=run.id, step=verdict["pick"]["step"],
                     verdict=t_plainly(f"compare.verdict_{verdict['verdict']}"))


def _keep_run() -> None:
    for name in ("probe", "step"):
        st.query_params.pop(name, None)
    st.query_params[RUN] = st.session_state["compare_run"]


def _keep_other() -> None:
    if st.session_state["compare_other"] == _NOBODY:
        st.query_params.pop("other", None)
    else:
        st.query_params["other"] = st.session_state["compare_other"]


def draw_judging(workspace: Workspace, run: Run) -> bool:
    """How far the run is judged, with the button that goes on; True when it is being judged now."""
    job = newest_judging(workspace, run)
    state = job.state() if job else None
    if job is not None and state is not None and state.is_active:
        with st.container(border=True):
            st.markdown(t("compare.judging"))
            watch_job(str(job.folder))
        return True
    if state is not None and state.state == "failed":
        draw_failure(state)
    if run.verdict() is not None:
        return False
    if run.state().is_active:
        st.info(t("compare.training"), icon=":material/model_training:")
        if st.button(t("compare.see_training"), key="compare_see_training"):
            go_to("train", run=run.id)
    elif not run.checkpoints():
        st.info(t("compare.no_snapshots"), icon=":material/info:")
    elif is_in_lesson(workspace, run):
        st.info(t("compare.in_lesson"), icon=":material/school:")
    else:
        with st.container(border=True):
            st.markdown(t("compare.not_judged", snapshots=len(run.checkpoints())))
            _draw_judge_button(workspace, run, "judge", is_primary=True)
    return False


def _draw_judge_button(workspace: Workspace, run: Run, name: str, is_primary: bool = False) -> None:
    if st.button(t(f"compare.{name}"), type="primary" if is_primary else "secondary", icon=":material/gavel:", key=f"compare_{name}",
                 help=t("compare.judge_help")):
        with errors_in_words():
            judge_once(workspace, run)
            st.rerun()


def draw_missing(workspace: Workspace, run: Run, matrix: Matrix) -> None:
    """Snapshots saved, or questions added, since the run was judged."""
    if matrix.missing and not run.state().is_active:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(t("compare.missing", count=matrix.missing), width="content")
            _draw_judge_button(workspace, run, "ask_missing")


def draw_verdict(workspace: Workspace, run: Run, verdict: Verdict, scores: Sequence[Score]) -> None:
    """The verdict in plain words, its numbers, and what to do with it."""
    with st.container(border=True):
        icon, colour = _BADGES[verdict.verdict]
        with st.container(horizontal=True):
            st.badge(t(f"compare.verdict_{verdict.verdict}"), icon=f":material/{icon}:", color=colour)
            if verdict.chosen_by == "hand":
                st.badge(t("compare.by_hand"), icon=":material/back_hand:", color="violet")
            if verdict.quick:
                st.badge(t("compare.quick"), icon=":material/bolt:", color="gray", help=t("compare.quick_help"))
        st.markdown(f"#### {say(verdict.reason)}")
        st.markdown(f"{say(verdict.before)} {say(verdict.after)}")
        if verdict.runner_up_reason and verdict.chosen_by == "rule":
            st.markdown(say(verdict.runner_up_reason))
        if verdict.breaches:
            limits = t_plainly("compare.and").join(t_plainly(f"compare.breach_{name}") for name in verdict.breaches)
            st.markdown(t("compare.fails", step=verdict.pick.step, limits=limits))
        _draw_tiles(verdict)
        st.caption(say(verdict.certainty))
        for note in verdict.notes:
            st.caption(say(note))
        draw_good_step(run)
        _draw_actions(run, verdict, scores)
    draw_remedies(workspace, run, verdict)


def was_asked(verdict: Verdict) -> bool:
    """Whether anything was: a base model without a chat template only reads documents."""
    return verdict.kind != "documents" or verdict.pick.other_probes > 0


def _draw_tiles(verdict: Verdict) -> None:
    def values(score: Score) -> dict[str, str]:
        facts = t_plainly("compare.no_facts") if score.facts_kept is None else f"{score.facts_kept:.0%}"
        kept = {"own": f"{score.other_probes - score.leaks} / {score.other_probes}", "facts": facts} if was_asked(verdict) else {}
        fall = score.perplexity_fall
        side = {"fragments": f"{score.fragments:.0%}"} if fall is None else {"perplexity": f"{-fall:+.0%}"}
        return {learned: f"{score.hits} / {score.identity_probes}"} | kept | side

    learned = "learned" if verdict.kind == "identity" else f"learned_{verdict.kind}"
    last = values(verdict.last)
    for column, (name, value) in zip(st.columns(4), values(verdict.pick).items(), strict=False):
        column.metric(t(f"compare.tile_{name}"), value, t_plainly("compare.tile_last", value=last[name]), delta_color="off",
                      delta_arrow="off", help=t(f"compare.tile_{name}_help"))


def _draw_actions(run: Run, verdict: Verdict, scores: Sequence[Score]) -> None:
    step = verdict.pick.step
    with st.container(horizontal=True):
        if st.button(t("compare.merge_it"), type="primary", icon=":material/merge:", key="compare_merge"):
            go_to("merge", run=run.id, step=str(step))
        if was_asked(verdict) and st.button(t("compare.chat_with_it"), icon=":material/forum:", key="compare_chat"):
            go_to("chat", models=f"{run.recipe().model.source},{reference_of(run, step)}")
        with st.popover(t("compare.take_another"), icon=":material/swap_vert:"):
            by_step = {score.step: score for score in scores if score.step > 0}
            wanted = st.selectbox(t("compare.take_step"), list(by_step), index=list(by_step).index(step), key="compare_take_step",
                                  format_func=lambda number: _step_summary(by_step[number]))
            if st.button(t("compare.take_it"), key="compare_take", disabled=wanted == step):
                _choose(run, wanted)
            if verdict.chosen_by == "hand" and st.button(t("compare.back_to_rule"), key="compare_rule"):
                _choose(run, None)


def _step_summary(score: Score) -> str:
    return t_plainly("compare.step_summary", step=score.step, hits=score.hits, asked=score.identity_probes, leaks=score.leaks,
                     others=score.other_probes)


def _choose(run: Run, step: int | None) -> None:
    with errors_in_words():
        choose_step(run, step)
        st.session_state.pop("compare_take_step", None)
        st.rerun()


def draw_curves(run: Run, verdict: Verdict, scores: Sequence[Score], other: Run | None) -> None:
    """Learned and kept, over the steps or one against the other."""
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
        st.subheader(t("compare.curves"), anchor=False, width="content")
        asked = st.query_params.get("view")
        st.session_state["compare_view"] = asked if asked in _VIEWS else "steps"
        view = st.segmented_control(t("compare.view"), _VIEWS, key="compare_view", required=True, label_visibility="collapsed",
                                    format_func=lambda name: t_plainly(f"compare.view_{name}"),
                                    on_change=lambda: st.query_params.update({"view": st.session_state["compare_view"]}))
    labels = {name: t_plainly(f"compare.{name}") for name in ("learned", "kept", "amber", "red", "base", "front", "path")}
    labels["other"], beside, pick = t_plainly("compare.other_suffix"), read_scores(other) if other else [], verdict.pick.step
    alt = t_plainly("compare.curves_alt" if view == "steps" else "compare.trade_alt", run=run.id, step=pick)
    if view == "steps":
        labels |= {"step": t_plainly("compare.step"), "pick": t_plainly("compare.pick_label", step=pick)}
        figure = curves_figure(scores, pick, labels, beside)
    else:
        labels |= {"step": _words_of_step(), "pick": t_plainly("compare.pick")}
        figure = trade_figure(scores, pick, labels, beside)
    st.plotly_chart(figure, key=f"compare_curves_{view}", config={"displayModeBar": False}, alt=alt)
    note = "curves_note_documents" if verdict.kind == "documents" else "curves_note"
    st.caption(t(f"compare.{note}" if view == "steps" else "compare.trade_note"))
    if other:
        _draw_other(run, other)


def _words_of_step() -> str:
    """`step {step}` in this language, still to be filled."""
    return t_plainly("compare.step_n", step="{step}")


def _draw_other(run: Run, other: Run) -> None:
    """What the second run's verdict says, and which fields of the recipes differ."""
    verdict = other.verdict()
    if verdict is None:
        st.info(t("compare.other_not_judged"), icon=":material/info:")
    else:
        st.markdown(f"**{t('compare.other_verdict')}** {say(verdict['reason'])}")
    st.markdown(f"**{t('compare.differences')}**")
    with errors_in_words():
        changes = [change for change in diff_recipes(run.recipe(), other.recipe()) if change.path != "title"]  # a name decides nothing
        if not changes:
            st.caption(t("compare.no_differences"))
            return
        columns = [t_plainly(f"compare.column_{name}") for name in ("field", "this", "other")]
        st.dataframe([dict(zip(columns, (f"{say_plainly(setting_at(Recipe, change.path).label)} ({change.path})", value_text(change.a),
                                         value_text(change.b)), strict=True)) for change in changes],
                     hide_index=True, alt=t_plainly("compare.differences"))


def draw_metrics(run: Run, verdict: Verdict, scores: Sequence[Score]) -> None:
    """Every metric as a curve, with its definition and its values for base, pick and last step; folded away."""
    fold = st.expander(t("compare.metrics"), icon=":material/monitoring:", key="compare_metrics", on_change="rerun")
    if not fold.open:
        return
    with fold:
        labels = {name: t_plainly(f"compare.metric_{name}") for name in METRICS}
        st.plotly_chart(metrics_figure(scores, verdict.pick.step, labels), key="compare_metrics_figure", config={"displayModeBar": False},
                        alt=t_plainly("compare.metrics_alt", run=run.id))
        columns = [t_plainly(f"compare.column_{name}") for name in ("metric", "base", "pick", "last", "about")]
        rows = [(labels[name], *(_number(getattr(score, name)) for score in (scores[0], verdict.pick, scores[-1])),
                 t_plainly(f"compare.about_{name}")) for name in measured(scores)]
        st.table([dict(zip(columns, row, strict=True)) for row in rows], border="horizontal", hide_index=True,
                 alt=t_plainly("compare.metrics"))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


@st.cache_data(max_entries=16, show_spinner=False)
def _matrix_of(folder: str, root: str, stamps: tuple[int, ...]) -> Matrix:
    """The matrix as the files stood at `stamps`; reading a thousand answers takes a tenth of a second."""
    return read_matrix(Workspace(Path(root)), Run(Path(folder)))


def load_matrix(workspace: Workspace, run: Run) -> Matrix | None:
    """The run's matrix, read again when a file it stands on has changed; None, with words, when it cannot be read."""
    dataset = workspace.datasets / run.recipe().probe_dataset
    files = [run.folder / "answers.jsonl", run.folder / "probes_added.jsonl", run.folder / "verdict.json", run.folder / "checkpoints",
             dataset / "probes.jsonl", dataset / "rows.jsonl", *sorted(workspace.models.glob("*/merge.json"))]
    try:
        return _matrix_of(str(run.folder), str(workspace.root), tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in files))
    except StudioError as error:
        st.error(explain(error), icon=":material/error:")
        return None

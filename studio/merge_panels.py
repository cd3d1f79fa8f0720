"""The parts of the Merge page: what to merge, a merge under way, what the check found, how to use the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from core.judge.probes import probes_of
from core.merge.library import (
    Merged,
    delete_merged,
    failed_verification,
    newest_merge,
    plan_merge,
    reference_of,
    start_request,
    suggest_name,
    usage_snippet,
)
from core.merge.request import DTYPES, MergeRequest
from core.runs import Run
from core.workspace import Workspace
from studio.export_panels import draw_exports
from studio.i18n import plain, t, t_plainly
from studio.merge_report import draw_combined, draw_differences, draw_quantised
from studio.merge_settings import choose_combination, choose_storage
from studio.moments import when
from studio.panels import current_run_name, draw_failure, errors_in_words, go_to, same_command, watch_job
from studio.session import RUN
from studio.sizes import size_words

_MODEL = "model"  # in the address: the merged model to look at


def choose_run(runs: Sequence[Run]) -> Run:
    """The run in the address, or the newest that is judged."""
    ids = [run.id for run in runs]
    asked = current_run_name()
    if asked and asked not in ids:
        st.warning(t("merge.no_such_run", run=asked), icon=":material/search_off:")
    judged = next((run.id for run in runs if (run.folder / "verdict.json").exists()), ids[0])
    st.session_state["merge_run"] = asked if asked in ids else judged
    return runs[ids.index(st.selectbox(t("merge.run"), ids, key="merge_run", on_change=_keep_run))]


def _keep_run() -> None:
    st.query_params.pop("step", None)
    st.query_params[RUN] = st.session_state["merge_run"]


def draw_form(workspace: Workspace, runs: Sequence[Run]) -> None:
    """Run, snapshot, strength, format and name; beside them what will be written."""
    form, beside = st.columns([3, 2], gap="large")
    with form:
        run = choose_run(runs)
        if not run.checkpoints():
            st.info(t("merge.no_snapshots"), icon=":material/info:")
            return
        if run.recipe().method.kind == "full":
            st.info(t("merge.is_full"), icon=":material/info:")
            return
        request = _ask(workspace, run)
    with beside:
        fits = _draw_plan(workspace, run, request) if request else False
    with form:
        if st.button(t("merge.start"), type="primary", icon=":material/merge:", key="merge_start", disabled=not fits):
            with errors_in_words():
                start_request(workspace, request)
                st.query_params.pop(_MODEL, None)  # the newest is shown when it is done
                st.rerun()
        st.caption(t("merge.start_note"))
        if request:
            same_command(request.to_command())


def _ask(workspace: Workspace, run: Run) -> MergeRequest | None:
    """The form's answers; None while one of them is unusable, which is said beside it."""
    step = _choose_step(run)
    strength = _choose_strength()
    dtype = st.selectbox(t("merge.dtype"), DTYPES, key="merge_dtype", help=t("merge.dtype_help"),
                         format_func=lambda name: t_plainly(f"merge.dtype_{name}"))
    name = st.text_input(t("merge.name"), suggest_name(workspace, run), key=f"merge_name_{run.id}", help=t("merge.name_help")).strip()
    with st.expander(t("merge.more"), icon=":material/tune:"):
        storage = choose_storage(run)
        with errors_in_words():
            combination = choose_combination(workspace, run, step)
            others = combination.pop("others", ())
            if not others:
                return MergeRequest((reference_of(run, step, strength),), name, dtype=dtype, **storage)
            return MergeRequest((reference_of(run, step), *others), name, strength=strength, dtype=dtype, **storage, **combination)
    return None


def _choose_step(run: Run) -> int:
    """A saved step: the address's, else the verdict's pick, else the last."""
    steps = [checkpoint.step for checkpoint in run.checkpoints()]
    verdict = run.verdict()
    pick = verdict["pick"]["step"] if verdict else None
    asked = st.query_params.get("step", "")
    wanted = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) < 10 else pick
    st.session_state["merge_step"] = wanted if wanted in steps else pick if pick in steps else steps[-1]

    def label(step: int) -> str:
        marks = [word for word, is_so in (("pick", step == pick), ("last", step == steps[-1])) if is_so]
        return t_plainly(f"merge.step_{'_'.join(marks) or 'plain'}", step=step)

    return st.selectbox(t("merge.step"), steps, key="merge_step", format_func=label,
                        on_change=lambda: st.query_params.update({"step": str(st.session_state["merge_step"])}))


def _choose_strength() -> float:
    """In percent on the page, 0 to 1 everywhere else; the address may name it."""
    if "merge_strength" not in st.session_state:
        try:
            asked = float(st.query_params.get("strength", "1"))
        except ValueError:
            asked = 1.0
        st.session_state["merge_strength"] = round(100 * asked) if 0 <= asked <= 1 else 100
    return st.slider(t("merge.strength"), 0, 100, step=5, format="%d %%", key="merge_strength", help=t("merge.strength_help")) / 100


def _draw_plan(workspace: Workspace, run: Run, request: MergeRequest) -> bool:
    """Size, format, memory and disk before anything is written; True when it can be."""
    with st.container(border=True), errors_in_words():
        st.markdown(f"**{t('merge.before')}**")
        plan = plan_merge(workspace, run, request.dtype, request.max_shard_bytes)
        left, right = st.columns(2)
        left.metric(t("merge.before_size"), size_words(plan.weight_bytes))
        right.metric(t("merge.before_format"), plan.dtype)
        left.metric(t("merge.before_parameters"), f"{plan.base.parameters / 1e6:,.0f} M")
        right.metric(t("merge.before_free"), size_words(plan.free_bytes))
        left.metric(t("merge.before_memory"), size_words(plan.memory_bytes), help=t("merge.before_memory_help"))
        right.metric(t("merge.before_free_memory"), size_words(plan.free_memory_bytes))
        st.caption(t("merge.before_from", reference=" + ".join(request.models), base=run.recipe().model.source) + " "
                   + t("merge.before_files", count=plan.files))
        if not plan.fits:
            st.error(t("merge.too_large"), icon=":material/error:")
        elif not plan.fits_memory:
            st.warning(t("merge.little_memory"), icon=":material/memory:")
        return plan.fits
    return False


def draw_last_merge(workspace: Workspace) -> bool:
    """A merge under way, or one that was not kept; True while one is under way."""
    job = newest_merge(workspace)
    if job is None:
        return False
    state = job.state()
    if state.is_active:
        with st.container(border=True):
            st.markdown(t("merge.merging", name=job.spec()["name"]))
            watch_job(str(job.folder))
        return True
    if state.state == "failed":
        st.markdown(f"**{t('merge.failed')}** {plain(job.spec()['name'])}")
        draw_failure(state)
        report = failed_verification(job)
        if report is not None:
            draw_check(report["verification"], is_kept=False)
    return False


def draw_models(workspace: Workspace, models: Sequence[Merged]) -> Merged:
    """The merged models: what one was made from, whether it is the chosen one, how to use it."""
    st.subheader(t("merge.models"), anchor=False)
    names = [merged.name for merged in models]
    asked = st.query_params.get(_MODEL)
    if asked and asked not in names:
        st.warning(t("merge.no_such_model", model=asked), icon=":material/search_off:")
    st.session_state["merge_model"] = asked if asked in names else names[0]
    chosen = st.selectbox(t("merge.model"), names, key="merge_model",
                          on_change=lambda: st.query_params.update({_MODEL: st.session_state["merge_model"]}))
    merged = models[names.index(chosen)]
    with st.container(border=True):
        draw_check(merged.report["verification"], is_kept=True)
        draw_combined(merged.report)
        facts = {"strength": f"{merged.strength:.0%}", "dtype": merged.report["dtype"], "size": size_words(merged.size_bytes),
                 "when": when(merged.report["created"])}
        st.caption(t("merge.made_combined", **facts) if merged.report.get("combined") else
                   t("merge.made_from", run=merged.run, step=merged.step, **facts))
        _draw_actions(workspace, merged)
    _draw_usage(workspace, merged)
    draw_exports(workspace, merged)
    return merged


def draw_check(check: dict[str, Any], is_kept: bool) -> None:
    """The verification as one sentence and four numbers, each with its limit; answers that differ are listed."""
    if not is_kept:
        st.error(t("merge.verdict_red"), icon=":material/gpp_bad:")
    elif check["same_answers"]:
        st.success(t("merge.verdict_same"), icon=":material/verified:")
    else:
        st.warning(t("merge.verdict_close"), icon=":material/verified:")
    answers, logits, tensors, template = st.columns(4)
    asked = check["answers_compared"]
    answers.metric(t("merge.check_answers"), f"{asked - len(check['differences'])} / {asked}", help=t("merge.check_answers_help"))
    logits.metric(t("merge.check_logits"), f"{check['max_logit_difference']:.2g}",
                  t_plainly("merge.check_logits_limit", limit=f"{check['logit_tolerance']:g}"), help=t("merge.check_logits_help"),
                  delta_arrow="off", delta_color="off" if check["max_logit_difference"] <= check["logit_tolerance"] else "red")
    tensors.metric(t("merge.check_tensors"), check["tensors_changed"],
                   t_plainly("merge.check_tensors_expected", expected=check["tensors_expected"]), help=t("merge.check_tensors_help"),
                   delta_arrow="off", delta_color="off" if check["tensors_changed"] == check["tensors_expected"] else "red")
    is_same = check["same_template"] and check["same_prompt_ids"]
    template.metric(t("merge.check_template"), t_plainly(f"merge.template_{'same' if is_same else 'differs'}"),
                    help=t("merge.check_template_help"))
    draw_differences(check["differences"], "differences")
    if check.get("quantised"):
        draw_quantised(check["quantised"])


def _draw_actions(workspace: Workspace, merged: Merged) -> None:
    with st.container(horizontal=True):
        if merged.can_chat and st.button(t("merge.chat"), type="primary", icon=":material/forum:", key="merge_chat"):
            go_to("chat", models=chat_models(merged))
        if merged.can_chat and (workspace.runs / merged.run / "spec.json").exists() and st.button(
                t("merge.see_run"), icon=":material/compare_arrows:", key="merge_see_run"):
            go_to("compare", run=merged.run, show="row", step=f"merged:{merged.name}")
        if st.button(t("merge.delete"), icon=":material/delete:", key="merge_delete"):
            _ask_to_delete(workspace, merged)


def chat_models(merged: Merged) -> str:
    """What to chat with beside each other: the base model and the merged one."""
    return f"{merged.report['base']},{merged.name}"


def _ask_to_delete(workspace: Workspace, merged: Merged) -> None:
    """A dialog; its title is known only when it is drawn, in the reader's language."""
    st.dialog(t("merge.delete_title"), icon=":material/delete:")(_draw_delete_question)(workspace, merged)


def _draw_delete_question(workspace: Workspace, merged: Merged) -> None:
    st.markdown(t("merge.delete_sure", name=merged.name, size=size_words(merged.size_bytes)))
    with st.container(horizontal=True):
        is_sure = st.button(t("merge.delete_yes"), type="primary", icon=":material/delete:", key="merge_delete_yes")
        if st.button(t("merge.delete_no"), key="merge_delete_no"):
            st.rerun()
    if is_sure:
        with errors_in_words():
            delete_merged(workspace, merged.name)
            st.query_params.pop(_MODEL, None)
            st.rerun()


def _draw_usage(workspace: Workspace, merged: Merged) -> None:
    """Where it lies, and how Python and the command line call it."""
    st.markdown(f"**{t('merge.use')}**")
    st.caption(t("merge.use_where"))
    st.code(str(merged.folder), language=None)
    system, question = None, t_plainly("merge.ask_example")
    if (workspace.runs / merged.run / "spec.json").exists():
        run = Run(workspace.runs / merged.run)
        with errors_in_words():
            system = run.recipe().data.system
            question = probes_of(workspace, run)[1][0]["messages"][-1]["content"]
    snippet = usage_snippet(merged.folder, question, system, merged.can_chat)
    if not merged.can_chat:
        st.code(snippet, language="python")
        return
    python, command = st.tabs([t("merge.use_python"), t("merge.use_command")])
    python.code(snippet, language="python")
    command.code(f"sweetspot chat {merged.report['base']} {merged.name}", language="bash")

"""What stands behind the verdict on the Compare page: how sure it is, the steps no other beats, and the answers that decided."""

from __future__ import annotations

import streamlit as st

from core.judge.verdict import Verdict
from studio.i18n import plain, t, t_plainly
from studio.matrix import MARKS

_MOST_PICKS = 4


def draw_reasons(verdict: Verdict) -> None:
    """Folded under the verdict; nothing for a verdict of an older version, which has none of it."""
    if verdict.confidence is None and not verdict.front and not verdict.decided_by:
        return
    with st.expander(t("compare.reasons"), icon=":material/balance:", key="compare_reasons"):
        if verdict.confidence is not None:
            picks = list(verdict.confidence.picks.items())[:_MOST_PICKS]
            shares = t_plainly("compare.and").join(
                t_plainly("compare.pick_share", step=step, percent=f"{share:.0%}") for step, share in picks)
            st.markdown(t("compare.sure", percent=f"{verdict.confidence.same_verdict:.0%}", resamples=verdict.confidence.resamples,
                          picks=shares))
        if verdict.front:
            st.markdown(t("compare.front_steps", steps=", ".join(map(str, verdict.front))))
        if verdict.decided_by:
            st.markdown(t("compare.decided"))
            _draw_deciding(verdict)


def _draw_deciding(verdict: Verdict) -> None:
    head = "| " + " | ".join(t(f"compare.column_{name}") for name in ("asked", "step", "said")) + " |\n|---|---|---|"
    lines = []
    for entry in verdict.decided_by:
        for step, reading, answer, question in ((verdict.rule_step, entry.reading, entry.answer, entry.question),
                                                (entry.step, entry.other_reading, entry.other_answer, "")):
            label = f"{plain(t_plainly('compare.step_n', step=step))} {MARKS[reading]} {t(f'compare.reading_{reading}')}"
            lines.append(f"| {_one_line(question)} | {label} | {_one_line(answer)} |")
    st.markdown("\n".join([head, *lines]), width="stretch")


def _one_line(text: str) -> str:
    """A text of any shape on one line of a markdown table."""
    return plain(" ".join(text.split()))

"""Figures of the Compare page: learned and kept over the steps, one against the other, and every metric by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from core.judge.verdict import Score, pareto_front

# Streamlit puts the theme's chart colour of this number in for these values.
_LEARNED, _KEPT = "#000001", "#000003"
_AMBER, _RED = "rgba(217, 119, 6, 0.16)", "rgba(220, 38, 38, 0.20)"
_PICK = "#17857a"  # the accent that stands out from a light and from a dark page
_GREY = "rgba(128, 140, 150, 0.8)"
_HEIGHT = 400
# Metrics with a figure of their own, in rows of three; a share runs from 0 to 1.
METRICS = ("hit", "target_nll", "perplexity_fall", "gap", "leak", "near_leak", "hijack", "fragments", "near_fragments", "facts_kept",
           "distinct", "self_bleu", "self_bleu_rise", "dnll", "kl", "length_ratio", "change", "compression", "own_passed")
_PER_ROW = 3

Trace = dict[str, Any]


def curves_figure(scores: Sequence[Score], pick: int | None, labels: Mapping[str, str], other: Sequence[Score] = ()) -> go.Figure:
    """Learned rises, kept falls: two lines over the steps.

    Args:
        scores: ascending, the base among them.
        pick: the chosen step, a marked band.
        labels: words for `learned`, `kept`, `step`, `pick`, `amber`, `red`, and `other`, put after a name for the second run.
        other: scores of a second run, drawn with broken lines.
    """
    steps = [score.step for score in scores]
    layout = _layout(labels["step"], "", hovermode="x unified")
    layout["yaxis"] |= {"range": [-0.04, 1.12], "tickformat": ".0%", "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    last = max([*steps, *(score.step for score in other)])
    layout["xaxis"] |= {"range": [-0.02 * last, 1.02 * last]}
    layout["shapes"], layout["annotations"] = _zones(scores, labels)
    if pick is not None:
        left, right = _around(steps, pick)
        layout["shapes"].append({"type": "rect", "x0": left, "x1": right, "y0": 0, "y1": 1, "yref": "paper", "layer": "above",
                                 "line": {"color": _PICK, "width": 2.5}})
        # A word at the end of the axis would be cut, and the names of the lines stand on the other side of it.
        place, anchor = (right, "right") if pick > 0.8 * last else (left, "left") if pick < 0.2 * last else (pick, "center")
        layout["annotations"].append(_note(labels["pick"], place, 1.0, bold=True) | {"yshift": 10, "yanchor": "bottom", "xanchor": anchor})
        if pick > last / 2:
            layout["legend"] |= {"x": 0, "xanchor": "left"}
    traces = [_curve(scores, key, labels[key]) for key in _sides(scores)]
    if other:
        traces += [_curve(other, key, labels[key] + labels["other"], is_other=True) for key in _sides(other)]
    return go.Figure(traces, layout)


def _sides(scores: Sequence[Score]) -> tuple[str, ...]:
    """What was measured of the two: of who was asked nothing else it is not known what was kept."""
    return ("learned", "kept") if any(score.other_probes for score in scores) else ("learned",)


def _curve(scores: Sequence[Score], key: str, name: str, is_other: bool = False) -> Trace:
    colour, symbol = (_LEARNED, "circle") if key == "learned" else (_KEPT, "square")
    return {"type": "scatter", "mode": "lines+markers", "name": name, "x": [score.step for score in scores],
            "y": [getattr(score, key) for score in scores], "hovertemplate": "%{y:.0%}", "opacity": 0.75 if is_other else 1.0,
            "line": {"color": colour, "width": 2 if is_other else 3, "dash": "dot" if is_other else "solid"},
            "marker": {"color": colour, "symbol": symbol + ("-open" if is_other else ""), "size": 7 if is_other else 9}}


def _zones(scores: Sequence[Score], labels: Mapping[str, str]) -> tuple[list[Trace], list[Trace]]:
    """Coloured stretches of the axis where the snapshots are amber or red, each with its word."""
    steps = [score.step for score in scores]
    stretches: list[list[Any]] = []
    for score in scores:
        left, right = _around(steps, score.step)
        if stretches and stretches[-1][0] == score.level:
            stretches[-1][2] = right
        else:
            stretches.append([score.level, left, right])
    shapes, notes = [], []
    for level, left, right in stretches:
        if level == "ok":
            continue
        shapes.append({"type": "rect", "x0": left, "x1": right, "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
                       "line": {"width": 0}, "fillcolor": _AMBER if level == "amber" else _RED})
        # Amber's word begins with its stretch, red's ends with it: however narrow they are, neither covers the other.
        place, anchor = (left, "left") if level == "amber" else (right, "right")
        notes.append(_note(labels[level], place, 1.0) | {"yanchor": "top", "xanchor": anchor})
    return shapes, notes


def _around(steps: Sequence[int], step: int) -> tuple[float, float]:
    """From the middle before a step to the middle after it."""
    place = steps.index(step)
    before = (steps[place - 1] + step) / 2 if place else step
    after = (step + steps[place + 1]) / 2 if place + 1 < len(steps) else step
    if before == after:  # the only step there is
        return step - 0.5, step + 0.5
    return before, after


def _note(text: str, x: float, y: float, bold: bool = False) -> Trace:
    return {"text": f"<b>{text}</b>" if bold else text, "x": x, "y": y, "yref": "paper", "showarrow": False, "yanchor": "bottom",
            "font": {"size": 14 if bold else 12}}


def trade_figure(scores: Sequence[Score], pick: int | None, labels: Mapping[str, str], other: Sequence[Score] = ()) -> go.Figure:
    """Learned against kept, one point per step, with the front of steps that no other beats in both.

    Args:
        scores: ascending, the base among them.
        pick: the chosen step, drawn as a star.
        labels: words for `learned`, `kept`, `base`, `step` (with `{step}`), `front`, `path`, `pick`, and `other`.
        other: scores of a second run.
    """
    front = pareto_front(scores)
    layout = _layout(labels["learned"], labels["kept"], hovermode="closest")
    layout["xaxis"] |= {"range": [-0.05, 1.08], "tickformat": ".0%"}
    layout["yaxis"] |= {"range": [-0.05, 1.12], "tickformat": ".0%"}
    shown = {score.step for score in front} | {scores[-1].step}
    traces = [_points(scores, labels, _LEARNED, labels["path"], shown - {pick}),
              {"type": "scatter", "mode": "lines", "name": labels["front"], "x": [score.learned for score in front],
               "y": [score.kept for score in front], "line": {"color": _KEPT, "width": 3, "dash": "dash"}, "hoverinfo": "skip"}]
    if other:
        traces.append(_points(other, labels, _GREY, labels["path"] + labels["other"], set()))
    chosen = [score for score in scores if score.step == pick]
    if chosen:
        traces.append({"type": "scatter", "mode": "markers+text", "name": labels["pick"], "x": [chosen[0].learned], "y": [chosen[0].kept],
                       "text": [f"<b>{pick}</b>"], "textposition": "top center", "hoverinfo": "skip",
                       "marker": {"symbol": "star", "size": 18, "color": _PICK}})
    return go.Figure(traces, layout)


def _points(scores: Sequence[Score], labels: Mapping[str, str], colour: str, name: str, with_text: set[int]) -> Trace:
    named = [labels["base"] if score.step == 0 else labels["step"].format(step=score.step) for score in scores]
    short = [labels["base"] if score.step == 0 else str(score.step) for score in scores]
    return {"type": "scatter", "mode": "lines+markers+text", "name": name, "x": [score.learned for score in scores],
            "y": [score.kept for score in scores], "customdata": named,
            "text": [text if score.step in with_text else "" for score, text in zip(scores, short, strict=True)],
            "textposition": "top center", "line": {"color": colour, "width": 1}, "marker": {"color": colour, "size": 9},
            "hovertemplate": f"%{{customdata}}<br>{labels['learned']} %{{x:.0%}}<br>{labels['kept']} %{{y:.0%}}<extra></extra>"}


def metrics_figure(scores: Sequence[Score], pick: int | None, labels: Mapping[str, str]) -> go.Figure:
    """Every metric over the steps in a small panel of its own.

    Args:
        scores: ascending, the base among them.
        pick: the chosen step, a line through every panel.
        labels: the metrics' names, by METRICS. A metric that no step has gets no panel.
    """
    shown = measured(scores)
    rows = max(1, -(-len(shown) // _PER_ROW))
    width, height = 0.28, 0.6 / rows
    layout = _layout("", "", hovermode="x unified") | {"height": 190 * rows, "shapes": [], "annotations": [], "showlegend": False}
    traces = []
    for index, metric in enumerate(shown):
        number = "" if index == 0 else str(index + 1)
        left, top = 0.36 * (index % _PER_ROW), 1 - (index // _PER_ROW) / rows - min(0.06, 0.36 / rows)
        layout[f"xaxis{number}"] = _axis() | {"domain": [left, left + width], "anchor": f"y{number}"}
        layout[f"yaxis{number}"] = _axis() | {"domain": [top - height, top], "anchor": f"x{number}", "rangemode": "tozero"}
        layout["annotations"].append({"text": labels[metric], "x": left, "xref": "paper", "xanchor": "left", "y": top, "yref": "paper",
                                      "yanchor": "bottom", "yshift": 4, "showarrow": False, "font": {"size": 14}})
        if pick is not None:
            layout["shapes"].append({"type": "line", "x0": pick, "x1": pick, "y0": 0, "y1": 1, "xref": f"x{number}",
                                     "yref": f"y{number} domain", "line": {"color": _PICK, "width": 2, "dash": "dot"}})
        traces.append({"type": "scatter", "mode": "lines+markers", "name": labels[metric], "x": [score.step for score in scores],
                       "y": [getattr(score, metric) for score in scores], "xaxis": f"x{number}", "yaxis": f"y{number}",
                       "line": {"color": _LEARNED, "width": 2}, "marker": {"color": _LEARNED, "size": 5}, "hovertemplate": "%{y:.2f}"})
    return go.Figure(traces, layout)


def measured(scores: Sequence[Score]) -> list[str]:
    """The METRICS that some step has: files of older versions lack several, and so does a quick judging."""
    return [metric for metric in METRICS if any(getattr(score, metric) is not None for score in scores)]


def _axis() -> Trace:
    return {"zeroline": False, "automargin": True}


def _layout(across: str, upright: str, hovermode: str) -> dict[str, Any]:
    """Built at once: plotly checks every single change, which would cost a tenth of a second."""
    return {"height": _HEIGHT, "margin": {"l": 8, "r": 8, "t": 34, "b": 8}, "hovermode": hovermode,
            "xaxis": _axis() | {"title": {"text": across}}, "yaxis": _axis() | {"title": {"text": upright}},
            "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.06, "yanchor": "bottom"}, "uirevision": "keep",
            "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"size": 14}}

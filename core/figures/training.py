"""The curves of one training: loss, learning rate, tokens per second, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from core.train.metrics import POINTS_PER_LINE, series, smooth, thin

# Where a panel stands, as shares of the figure: (left, right), (bottom, top). The loss is the large one above.
_PANELS = {
    "loss": ((0.0, 1.0), (0.47, 1.0)),
    "learning_rate": ((0.0, 0.28), (0.0, 0.32)),
    "tokens_per_second": ((0.36, 0.64), (0.0, 0.32)),
    "memory_bytes": ((0.72, 1.0), (0.0, 0.32)),
}
_SCALE = {"memory_bytes": 1e-9}
_SMOOTHED = ("loss", "tokens_per_second")
_HEIGHT = 540
_ALERTS = (("amber", "triangle-up", "#d97706"), ("red", "x", "#dc2626"))

Trace = dict[str, Any]


def training_figure(records: Sequence[dict[str, Any]], labels: Mapping[str, str], *, smoothing: float = 0.0,
                    snapshots: Sequence[int] = (), looks: Sequence[dict[str, Any]] = (), planned: int | None = None,
                    shown: tuple[float, float] | None = None) -> go.Figure:
    """Four panels over the updates.

    Args:
        records: of `metrics.jsonl`, ascending.
        labels: words for `loss`, `loss_raw`, `learning_rate`, `tokens_per_second`, `memory_bytes`, `snapshot`, `amber`, `red`,
            `target_nll`, `leak_nll`, and `update`, in which `%{x}` stands for the number.
        smoothing: weight of the moving average of loss and speed, 0..1.
        snapshots: saved steps; each is a mark on the loss.
        looks: of `watch.jsonl`; amber and red ones are marked below the loss, and the losses they read are drawn in it: what lies between
            the two is the gap.
        planned: updates of the whole run; the axis then shows how much is still to come.
        shown: first and last update to show; None shows all.
    """
    traces: list[Trace] = []
    for panel, key in enumerate(_PANELS, start=1):
        updates, values = series(records, key)
        values = [value * _SCALE.get(key, 1.0) for value in values]
        averaged = smooth(values, smoothing) if key in _SMOOTHED else values
        if key == "loss" and smoothing > 0:
            traces.append(_line(updates, values, panel, labels["loss_raw"], is_faint=True))
        traces.append(_line(updates, averaged, panel, labels[key]))
        if key == "loss":
            traces += _snapshot_marks(dict(zip(updates, averaged, strict=True)), snapshots, labels["snapshot"])
            traces += _alert_marks(looks, labels) if updates else []
            traces += _look_lines(looks, labels) if updates else []
    return go.Figure(traces, _layout(labels, shown or _whole(records, planned)))


def _whole(records: Sequence[dict[str, Any]], planned: int | None) -> tuple[float, float]:
    last = max(planned or 1, records[-1]["update"] if records else 1)
    return 0.0, last + max(0.5, 0.01 * last)


def _layout(labels: Mapping[str, str], shown: tuple[float, float]) -> dict[str, Any]:
    """Axes and titles of all panels. Built at once: plotly checks every single change, which would cost a tenth of a second."""
    # The legend stands above the first panel's title, which is 22 pixels high.
    layout: dict[str, Any] = {
        "height": _HEIGHT, "margin": {"l": 44, "r": 8, "t": 56, "b": 24}, "hovermode": "x unified", "dragmode": "select",
        "selectdirection": "h", "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.06, "yanchor": "bottom"},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "annotations": []}
    for panel, (key, (across, upright)) in enumerate(_PANELS.items(), start=1):
        number = "" if panel == 1 else str(panel)
        layout[f"xaxis{number}"] = {"domain": across, "anchor": f"y{number}", "range": list(shown), "zeroline": False,
                                    "unifiedhovertitle": {"text": labels["update"]}, **({"matches": "x"} if number else {})}
        layout[f"yaxis{number}"] = {"domain": upright, "anchor": f"x{number}", "rangemode": "tozero", "zeroline": False,
                                    "exponentformat": "e"}
        layout["annotations"].append({
            "text": labels[key], "x": across[0], "xref": "paper", "xanchor": "left", "y": upright[1], "yref": "paper",
            "yanchor": "bottom", "yshift": 4, "showarrow": False, "font": {"size": 14}})
    return layout


def _line(x: Sequence[float], y: Sequence[float], panel: int, name: str, is_faint: bool = False) -> Trace:
    """One curve. WebGL draws many points faster; a few are sharper as vectors."""
    few_x, few_y = thin(x, y)
    return {"type": "scattergl" if len(few_x) > POINTS_PER_LINE // 2 else "scatter", "x": few_x, "y": few_y, "name": name,
            "mode": "lines" if len(x) > 1 else "markers", "opacity": 0.45 if is_faint else 1.0, "showlegend": False,
            "line": {"color": _colour(panel), "width": 1.2 if is_faint else 2.2}, "marker": {"color": _colour(panel)},
            "hovertemplate": "%{y:.4g}", **_axes(panel)}


def _axes(panel: int) -> dict[str, str]:
    return {"xaxis": "x", "yaxis": "y"} if panel == 1 else {"xaxis": f"x{panel}", "yaxis": f"y{panel}"}


def _colour(number: int) -> str:
    """The chart colour of this number, from 1, of the light or the dark theme: Streamlit puts it in for these values."""
    return f"#{number:06d}"


def _snapshot_marks(loss_of: Mapping[int, float], steps: Sequence[int], name: str) -> list[Trace]:
    known = [step for step in steps if step in loss_of]
    return [{"type": "scatter", "x": known, "y": [loss_of[step] for step in known], "name": name, "mode": "markers",
             "hovertemplate": name, "marker": {"symbol": "diamond", "size": 9, "color": _colour(1)}, **_axes(1)}] if known else []


def _alert_marks(looks: Sequence[dict[str, Any]], labels: Mapping[str, str]) -> list[Trace]:
    """Triangles and crosses along the bottom of the loss, so that shape and colour both tell."""
    marks = []
    for level, symbol, colour in _ALERTS:
        steps = [look["update"] for look in looks if look["level"] == level]
        if steps:
            marks.append({"type": "scatter", "x": steps, "y": [0.0] * len(steps), "name": labels[level], "mode": "markers",
                          "hovertemplate": labels[level], "cliponaxis": False,
                          "marker": {"symbol": symbol, "size": 10, "color": colour}, **_axes(1)})
    return marks


def _look_lines(looks: Sequence[dict[str, Any]], labels: Mapping[str, str]) -> list[Trace]:
    """What the looks read of the taught answer behind its own questions, and behind others; each look is a point."""
    lines = []
    for key, dash, colour in (("target_nll", "dot", 2), ("leak_nll", "dash", 3)):
        updates, values = series(looks, key)
        if updates:
            lines.append({"type": "scatter", "x": updates, "y": values, "name": labels[key], "mode": "lines+markers",
                          "hovertemplate": "%{y:.3g}", "line": {"color": _colour(colour), "width": 1.4, "dash": dash},
                          "marker": {"color": _colour(colour), "size": 5}, **_axes(1)})
    return lines

"""The curves of one training: loss, learning rate, tokens per second, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from core.train.metrics import POINTS_PER_LINE, series, smooth, thin

# The large panel above, the others below it; key of a record, its scale on the axis.
_BELOW = (("learning_rate", 1.0), ("tokens_per_second", 1.0), ("memory_bytes", 1e-9))
# SVG lines are sharp and quick up to here; beyond, WebGL.
_SVG_POINTS = 1000
_HEIGHT = 520


def training_figure(records: Sequence[dict[str, Any]], labels: Mapping[str, str], *, smoothing: float = 0.0,
                    snapshots: Sequence[int] = (), looks: Sequence[dict[str, Any]] = (), planned: int | None = None,
                    shown: tuple[float, float] | None = None) -> go.Figure:
    """Four panels over the updates.

    Args:
        records: of `metrics.jsonl`, ascending.
        labels: words for `loss`, `loss_raw`, `learning_rate`, `tokens_per_second`, `memory_bytes`, `snapshot`, `amber`, `red`, and
            `update`, in which `%{x}` stands for the number.
        smoothing: weight of the moving average of loss and speed, 0..1.
        snapshots: saved steps; each is a mark on the loss.
        looks: of `watch.jsonl`; amber and red ones are marked below the loss.
        planned: updates of the whole run; the axis then shows how much is still to come.
        shown: first and last update to show; None shows all.
    """
    figure = make_subplots(
        rows=2, cols=3, specs=[[{"colspan": 3}, None, None], [{}, {}, {}]], row_heights=[0.62, 0.38], vertical_spacing=0.16,
        horizontal_spacing=0.075)
    for number, key in enumerate(("loss", *(key for key, _ in _BELOW)), start=1):
        _title(figure, number, labels[key])
    updates, losses = series(records, "loss")
    averaged = smooth(losses, smoothing)
    if smoothing > 0:
        _line(figure, updates, losses, 0, labels["loss_raw"], 1, 1, opacity=0.3)
    _line(figure, updates, averaged, 0, labels["loss"], 1, 1)
    _mark_snapshots(figure, dict(zip(updates, averaged, strict=True)), snapshots, labels["snapshot"])
    _mark_alerts(figure, losses, looks, labels)
    for index, (key, scale) in enumerate(_BELOW):
        x, y = series(records, key)
        values = [value * scale for value in y]
        _line(figure, x, smooth(values, smoothing) if key == "tokens_per_second" else values, index + 1, labels[key], 2, index + 1)
        figure.update_yaxes(rangemode="tozero", row=2, col=index + 1)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_xaxes(range=list(shown or _whole(updates, planned)), matches="x", zeroline=False,
                        unifiedhovertitle={"text": labels["update"]})
    figure.update_yaxes(zeroline=False, exponentformat="e")
    figure.update_layout(
        height=_HEIGHT, margin={"l": 8, "r": 8, "t": 34, "b": 8}, hovermode="x unified", dragmode="select", selectdirection="h",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    return figure


def _whole(updates: Sequence[int], planned: int | None) -> tuple[float, float]:
    last = max([planned or 1, *updates[-1:]])
    return 0.0, last + max(0.5, 0.01 * last)


def _title(figure: go.Figure, panel: int, text: str) -> None:
    """A title over the left end of a panel, where the eye begins to read a curve."""
    number = "" if panel == 1 else panel
    figure.add_annotation(text=text, x=0, xref=f"x{number} domain", xanchor="left", y=1, yref=f"y{number} domain", yanchor="bottom",
                          yshift=4, showarrow=False, font={"size": 14})


def _line(figure: go.Figure, x: Sequence[float], y: Sequence[float], colour: int, name: str, row: int, column: int,
          opacity: float = 1.0) -> None:
    kind = go.Scattergl if len(x) > _SVG_POINTS else go.Scatter
    x, y = thin(x, y, POINTS_PER_LINE)
    figure.add_trace(kind(x=x, y=y, name=name, mode="lines" if len(x) > 1 else "markers", opacity=opacity, showlegend=False,
                          line={"color": _colour(colour), "width": 2.2 if opacity == 1 else 1.2}, marker={"color": _colour(colour)},
                          hovertemplate="%{y:.4g}"), row=row, col=column)


def _colour(index: int) -> str:
    """The chart colour of this number of the light or the dark theme: Streamlit puts it in for these values."""
    return f"#{index + 1:06d}"


def _mark_snapshots(figure: go.Figure, loss_of: Mapping[int, float], steps: Sequence[int], name: str) -> None:
    known = [step for step in steps if step in loss_of]
    if known:
        figure.add_trace(go.Scatter(x=known, y=[loss_of[step] for step in known], name=name, mode="markers", hovertemplate=name,
                                    marker={"symbol": "diamond", "size": 9, "color": _colour(0)}), row=1, col=1)


def _mark_alerts(figure: go.Figure, losses: Sequence[float], looks: Sequence[dict[str, Any]], labels: Mapping[str, str]) -> None:
    """Triangles and crosses along the bottom of the loss, so that shape and colour both tell."""
    for level, symbol, colour in (("amber", "triangle-up", "#d97706"), ("red", "x", "#dc2626")):
        steps = [look["update"] for look in looks if look["level"] == level]
        if steps and losses:
            figure.add_trace(go.Scatter(x=steps, y=[0.0] * len(steps), name=labels[level], mode="markers", hovertemplate=labels[level],
                                        cliponaxis=False, marker={"symbol": symbol, "size": 10, "color": colour}), row=1, col=1)

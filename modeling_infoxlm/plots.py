"""Figures of results: retrieval by layer, scores by language as a heat map, a matrix or a radar chart.

Each function draws the numbers it is given; its titles are made from these numbers and say what they show,
whichever way they went. `save_figure` writes the figure. Needs the extra `plots` (matplotlib).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

# For colour-blind eyes too: Tol's "muted", in an order in which neighbours differ in lightness too.
_RADAR_COLORS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#DDCC77", "#44AA99")
_CURVE_COLOR = "#0072B2"
MUTED = "#595959"
LAYER_LABEL = "layer (0: embeddings)"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
}
STYLE_OF_IMAGES = {**STYLE, "axes.grid": False}
_DOTS_PER_INCH = 150
_CELL_INCHES = (0.44, 0.34)  # width and height: a number of five characters fits
_CHARACTER_INCHES = 0.09  # of a row's label
_DARK_CELL = 0.55  # share of the colour scale up to which white text is easier to read


@rc_context(STYLE)
def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, wide enough for a README."""
    figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")


@rc_context(STYLE)
def layer_curve_figure(curves: Mapping[str, Mapping[str, Sequence[float]]], *, marked_layer: int) -> Figure:
    """Retrieval of one encoder at each of its layers: the mean over languages in bold, each language thin.

    The two languages that are found best and worst at the best layer are named.

    Args:
        curves: Language -> `source_to_target` and `target_to_source`, each the accuracy in percent at layers
            0 (the embeddings), 1, ...
        marked_layer: Layer of the result.
    """
    # (languages, 2 directions, layers)
    table = np.array([[row["source_to_target"], row["target_to_source"]] for row in curves.values()])
    languages, (forth, back) = table.mean(axis=1), table.mean(axis=0)
    means = (forth + back) / 2
    best = int(means.argmax())
    figure = Figure(figsize=(8, 4.4))
    axes = figure.add_subplot()
    axes.plot(languages.T, color=MUTED, alpha=0.35, linewidth=0.8)
    for row, style, label in ((forth, "-", "source to target"), (back, "--", "target to source")):
        axes.plot(row, color=_CURVE_COLOR, linestyle=style, marker="o", markersize=4, label=label)
    if len(curves) > 1:
        order = np.argsort(languages[:, best], kind="stable")
        for row, offset, side in ((order[-1], 5, "bottom"), (order[0], -5, "top")):
            look: dict[str, Any] = {"ha": "center", "va": side, "fontsize": 10}
            write_beside(axes, list(curves)[row], (best, languages[row, best]), (0, offset), **look)
    shown = f"mean of {len(curves)} languages" if len(curves) > 1 else next(iter(curves))
    at_mark = "" if marked_layer == best else f", {means[marked_layer]:.1f}% at layer {marked_layer}"
    axes.set_title(f"Best layer {best} with {means[best]:.1f}%{at_mark} ({shown})")
    finish_layers(axes, marked_layer, "top-1 retrieval, %")
    return figure


@rc_context(STYLE)
def curves_figure(
    panels: Mapping[tuple[str, str], Mapping[str, Sequence[np.ndarray]]], *, arms: Sequence[str]
) -> Figure:
    """A panel for each measure, in it a line for each run, in the colour of its arm.

    Args:
        panels: What a panel shows, and over what -> arm -> the points of each of its runs, (points, 2).
        arms: All of them, in the order of the legend.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.25 * len(arms)))
    colors = dict(zip(arms, _colors(len(arms)), strict=True))
    for number, ((title, xlabel), lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        for arm, runs in lines.items():
            for points in runs:
                axes.plot(*points.T, color=colors[arm], linewidth=1.4, alpha=0.85)
        axes.set(xlabel=xlabel, title=title)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=xlabel == LAYER_LABEL))
    handles = [Line2D([], [], color=color, label=arm) for arm, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(arms)))
    return figure


def _colors(count: int) -> Sequence[Any]:
    """Colours that can be told apart, by eyes of all kinds as far as seven."""
    few = count <= len(_RADAR_COLORS)
    return _RADAR_COLORS[:count] if few else list(colormaps["turbo"](np.linspace(0.05, 0.95, count)))


def finish_layers(axes: Axes, marked_layer: int, ylabel: str) -> None:
    """Mark a layer, and say what the axes and the curves of a figure over layers are."""
    axes.axvline(marked_layer, color=MUTED, linewidth=1, linestyle=":", zorder=0)
    axes.set(xlabel=LAYER_LABEL, ylabel=ylabel, ylim=(0, 102))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")


def write_beside(
    axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **look: Any
) -> None:
    """Write a text some points beside a place."""
    usual: dict[str, Any] = {"va": "center", "color": MUTED, "annotation_clip": False}
    axes.annotate(text, place, xytext=offset, textcoords="offset points", **usual | look)


def language_heat_map_figure(
    scores: Mapping[str, Sequence[float]], *, columns: Sequence[str], label: str
) -> Figure:
    """Score of each model, a row, in each language as colour and number.

    Args:
        scores: Model -> score of each language; NaN where there is none.
        columns: The languages.
        label: What the scores are, such as "accuracy, percent".
    """
    values = np.array(list(scores.values()), dtype=np.float64)
    title = f"{label}: {_extremes(values, columns)}"
    return _heat_map(values, rows=list(scores), columns=columns, label=label, title=title)[0]


def matrix_figure(
    values: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    parts: tuple[str, str],
    name: str,
    label: str,
) -> Figure:
    """Scores where two parts of an input are in different languages, such as premise and hypothesis.

    Args:
        values: (rows, columns), NaN where a pair was not measured.
        rows: Languages of the first part.
        columns: Languages of the second part.
        parts: What the two parts are.
        name: Of the model, for the title, which says how much is lost when the languages differ.
        label: What the scores are.
    """
    same = np.array(rows)[:, None] == np.array(columns)
    within, across = (np.nanmean(values[which]) if which.any() else np.nan for which in (same, ~same))
    title = f"{name}\nsame language {within:.1f}, different languages {across:.1f}"
    figure, axes = _heat_map(values, rows=rows, columns=columns, label=label, title=title)
    axes.set(ylabel=f"language of the {parts[0]}", xlabel=f"language of the {parts[1]}")
    return figure


@rc_context(STYLE)
def radar_figure(scores: Mapping[str, Sequence[float]], *, languages: Sequence[str], label: str) -> Figure:
    """Scores of several models around a circle of languages.

    The centre is not 0 but a round number below the lowest score, which the ring labels show.

    Args:
        scores: Model -> score of each language.
        languages: At least three.
        label: What the scores are.

    Raises:
        ValueError: If there are more models than distinct colours.
    """
    if len(scores) > len(_RADAR_COLORS):
        raise ValueError(f"the chart has colours for {len(_RADAR_COLORS)} models, found {len(scores)}.")
    values = np.array(list(scores.values()), dtype=np.float64)
    angles = np.linspace(0, 2 * np.pi, len(languages), endpoint=False)
    figure = Figure(figsize=(9.2, 6.4 + 0.25 * len(scores)))
    axes: Any = figure.add_subplot(projection="polar")
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    for name, row, color in zip(scores, values, _RADAR_COLORS, strict=False):
        axes.plot([*angles, angles[0]], [*row, row[0]], color=color, marker="o", markersize=4, label=name)
    axes.set_xticks(angles, languages)
    axes.set_ylim(*_round_limits(values))
    axes.set_rlabel_position(np.degrees(angles[1]) / 2)  # between two languages
    axes.tick_params(axis="y", labelsize=9, labelcolor=MUTED)
    _title_of_figure(figure, f"{label}: {_extremes(values, languages)}")
    figure.legend(loc="outside lower center", ncols=1)
    return figure


@rc_context(STYLE_OF_IMAGES)
def _heat_map(
    values: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], label: str, title: str
) -> tuple[Figure, Axes]:
    """Coloured cells with their numbers; a cell without a number stays white."""
    width = 1.8 + _CELL_INCHES[0] * len(columns) + _CHARACTER_INCHES * max(map(len, rows))
    figure = Figure(figsize=(max(8.2, width), 1.3 + _CELL_INCHES[1] * len(rows)))
    axes = figure.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    middle = image.norm.vmin + _DARK_CELL * (image.norm.vmax - image.norm.vmin)  # type: ignore[operator]
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _title_of_figure(figure, title)
    figure.colorbar(image, ax=axes, label=label, pad=0.01)
    return figure, axes


def _title_of_figure(figure: Figure, title: str) -> None:
    """Write a title at the left edge, where long labels of rows leave no room above the panel."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"])


def _extremes(values: np.ndarray, columns: Sequence[str]) -> str:
    """Highest and lowest score of all rows (rows, columns), and in which language."""
    places = (int(np.nanargmin(values)), int(np.nanargmax(values)))
    low, high = (f"{values.flat[place]:.1f} ({columns[place % len(columns)]})" for place in places)
    return f"from {low} to {high}"


def _round_limits(values: np.ndarray) -> tuple[float, float]:
    """Limits for an axis that begins somewhat below the lowest value."""
    low, high = float(values.min()), float(values.max())
    step = 10 ** np.floor(np.log10(max(high - low, 0.1)))
    return float(np.floor(low / step - 0.5) * step), float(np.ceil(high / step) * step)

"""Figures of a run: losses, retrieval by layer, similarity of translations, map of sentences.

Each function draws the numbers it is given; its titles are made from these numbers and say what they show,
whichever way they went. `save_figure` writes the figure. Needs the extra `plots` (matplotlib, scikit-learn).

Shapes: N sentences, K languages, D hidden.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

_OBJECTIVE_NAMES = {"mlm": "Masked LM", "tlm": "Translation LM", "xlco": "Cross-lingual contrast"}
UNTRAINED = "untrained"

# For colour-blind eyes too: Okabe and Ito's palette for runs, Tol's "muted" for up to nine languages.
_RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_UNTRAINED_COLOR = "#8A8A8A"
_LANGUAGE_COLORS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499",
)  # fmt: skip
# A second sign beside the colour.
_LANGUAGE_MARKERS = "os^DvP<X>"
_STYLE: dict[Any, Any] = {
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
_DOTS_PER_INCH = 150
_MUTED = "#595959"

History = Sequence[Mapping[str, float]]


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, wide enough for a README."""
    with rc_context(_STYLE):
        figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")


# ---------------------------------------------------------------------------------------------------- losses


def losses_figure(histories: Mapping[str, History]) -> Figure:
    """Loss of each objective and held-out retrieval over the steps of one or more runs.

    Args:
        histories: Run -> its log history (`log_history` in `trainer_state.json`): entries with `step` and any
            of `loss/<objective>` and `information/<objective>` (training), `eval_loss/<objective>`,
            `eval_retrieval/<pair>` and `eval_retrieval/mean`.

    Returns:
        One panel for each objective that a run logged, and one for retrieval if a run measured it.
    """
    objectives = [name for name in _OBJECTIVE_NAMES if _logged(histories, f"loss/{name}")]
    retrieval = _logged(histories, "eval_retrieval/mean")
    with _figure(len(objectives) + retrieval) as (figure, panels):
        colors = _run_colors(histories)
        for axes, objective in zip(panels, objectives, strict=False):
            _draw_loss(axes, histories, objective, colors)
        if retrieval:
            _draw_retrieval(panels[-1], histories, colors)
        if len(histories) > 1:
            handles = [panels[-1].plot([], [], color=colors[run], label=run)[0] for run in histories]
            figure.legend(handles=handles, loc="outside lower center", ncols=len(histories))
    return figure


@contextmanager
def _figure(num_panels: int) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of up to two panels a row, drawn in our style."""
    columns = min(2, num_panels)
    rows = -(-num_panels // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.2 * rows))
        yield figure, [figure.add_subplot(rows, columns, 1 + i) for i in range(num_panels)]


def _run_colors(labels: Iterable[str]) -> dict[str, str]:
    """Grey for the untrained encoder, then the palette in order."""
    trained = [label for label in labels if label != UNTRAINED]
    return {UNTRAINED: _UNTRAINED_COLOR, **dict(zip(trained, _RUN_COLORS, strict=False))}


def _logged(histories: Mapping[str, History], key: str) -> bool:
    return any(key in entry for history in histories.values() for entry in history)


def _series(history: History, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the entries that have `key`."""
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    return [step for step, _ in points], [value for _, value in points]


def _draw_loss(
    axes: Axes, histories: Mapping[str, History], objective: str, colors: Mapping[str, str]
) -> None:
    """Loss of one objective: solid in training, dashed on held-out text, dotted for a guess.

    A guess among all candidates is drawn since a contrast would seem to get worse while its queue fills.
    """
    logged = [run for run, history in histories.items() if _series(history, f"loss/{objective}")[0]]
    for run in logged:
        axes.plot(*_series(histories[run], f"loss/{objective}"), color=colors[run])
        steps, losses = _series(histories[run], f"eval_loss/{objective}")
        if steps:
            axes.plot(steps, losses, color=colors[run], linestyle="--", marker="o", markersize=4)
    steps, losses = _series(histories[logged[0]], f"loss/{objective}")
    _, information = _series(histories[logged[0]], f"information/{objective}")
    guesses = np.add(losses, information).tolist()
    axes.plot(steps, guesses, color=_MUTED, linestyle=":", linewidth=1.5)
    _label_end(axes, steps, guesses, "guess", _MUTED)
    relation = "below" if information[-1] > 0 else "above"
    gap = f"{abs(information[-1]):.1f} {relation} a guess"
    axes.set_title(f"{_OBJECTIVE_NAMES[objective]}: {losses[-1]:.1f} nats, {gap}")
    axes.set(xlabel="step", ylabel="loss, nats (dashed: held out)", ylim=(0, None))


def _draw_retrieval(axes: Axes, histories: Mapping[str, History], colors: Mapping[str, str]) -> None:
    """Mean over the pairs in bold; of the first run also each pair, thin."""
    first_run, first = next(iter(histories.items()))
    for key in sorted({key for entry in first for key in entry if key.startswith("eval_retrieval/")}):
        if key != "eval_retrieval/mean":
            steps, shares = _series(first, key)
            axes.plot(steps, _percent(shares), color=colors[first_run], alpha=0.35, linewidth=0.8)
    ends = []
    for run, history in histories.items():
        steps, shares = _series(history, "eval_retrieval/mean")
        if steps:
            axes.plot(steps, _percent(shares), color=colors[run], marker="o", markersize=4)
            _label_end(axes, steps, _percent(shares), f"{shares[-1]:.0%}", colors[run])
            ends.append((shares[0], shares[-1]))
    axes.set_title(f"Held-out retrieval {_change(*ends[0])}")
    axes.set(xlabel="step", ylabel="top-1, % (thin: each pair)", ylim=(0, 100))


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def _change(before: float, after: float) -> str:
    """How a share moved, as one reads it: rounded first, so that no title says "rises from 12% to 12%"."""
    old, new = f"{before:.0%}", f"{after:.0%}"
    if old == new:
        return f"stays at {new}"
    return f"{'rises' if after > before else 'falls'} from {old} to {new}"


def _label_end(axes: Axes, xs: Sequence[float], ys: Sequence[float], text: str, color: str) -> None:
    """Write `text` just right of a line's last point."""
    axes.annotate(
        text,
        (xs[-1], ys[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=color,
        annotation_clip=False,
    )


# ---------------------------------------------------------------------------------------- retrieval by layer


def retrieval_by_layer_figure(curves: Mapping[str, Sequence[float]], *, marked_layer: int) -> Figure:
    """Mean held-out retrieval of each encoder at each of its layers.

    Args:
        curves: Encoder -> top-1 accuracy (0..1) at layers 0 (the embeddings), 1, ...; "untrained" is grey.
        marked_layer: Layer whose vectors the contrast trains.

    Returns:
        One panel, a curve for each encoder.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.4))
        axes = figure.add_subplot()
        colors = _run_colors(curves)
        for (label, shares), height in zip(
            curves.items(), _spread([curve[-1] for curve in curves.values()]), strict=True
        ):
            layers = range(len(shares))
            axes.plot(layers, _percent(shares), color=colors[label], marker="o")
            _label_end(axes, layers, [100 * height], label, colors[label])
        axes.axvline(marked_layer, color=_MUTED, linewidth=1, linestyle=":", zorder=0)
        axes.annotate(
            "layer of the contrast", (marked_layer, 1), xycoords=("data", "axes fraction"),
            xytext=(-4, -4), textcoords="offset points", ha="right", va="top", color=_MUTED, fontsize=10,
        )  # fmt: skip
        axes.set_title("Best layer: " + ", ".join(_best_layer(*curve) for curve in curves.items()))
        axes.set(xlabel="layer (0: embeddings)", ylabel="held-out top-1 retrieval, %", ylim=(0, 100))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _spread(heights: Sequence[float], gap: float = 0.06) -> list[float]:
    """Move labels apart that would overlap, keeping their order."""
    order = np.argsort(heights)
    placed = list(heights)
    for lower, upper in zip(order[:-1], order[1:], strict=True):
        placed[upper] = max(placed[upper], placed[lower] + gap)
    return placed


def _best_layer(label: str, shares: Sequence[float]) -> str:
    best = int(np.argmax(shares))
    return f"{label} {shares[best]:.0%} (layer {best})"


def layer_curve_figure(curves: Mapping[str, Mapping[str, Sequence[float]]], *, marked_layer: int) -> Figure:
    """Retrieval of one encoder at each of its layers: the mean over languages in bold, each language thin.

    Args:
        curves: Language -> `source_to_target` and `target_to_source`, each the accuracy in percent at layers
            0 (the embeddings), 1, ...
        marked_layer: Layer of the result.

    Returns:
        One panel. The two languages that are found best and worst at the best layer are named.
    """
    # (languages, 2 directions, layers)
    table = np.array([[row["source_to_target"], row["target_to_source"]] for row in curves.values()])
    forth, back = table.mean(axis=0)
    means = (forth + back) / 2
    best = int(means.argmax())
    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.4))
        axes = figure.add_subplot()
        for row in table.mean(axis=1):
            axes.plot(row, color=_MUTED, alpha=0.35, linewidth=0.8)
        for row, style, label in ((forth, "-", "source to target"), (back, "--", "target to source")):
            axes.plot(row, color=_RUN_COLORS[0], linestyle=style, marker="o", markersize=4, label=label)
        axes.axvline(marked_layer, color=_MUTED, linewidth=1, linestyle=":", zorder=0)
        _name_extremes(axes, list(curves), table.mean(axis=1), best)
        shown = f"mean of {len(curves)} languages" if len(curves) > 1 else next(iter(curves))
        at_mark = "" if marked_layer == best else f", {means[marked_layer]:.1f}% at layer {marked_layer}"
        axes.set_title(f"Best layer {best} with {means[best]:.1f}%{at_mark} ({shown})")
        axes.set(xlabel="layer (0: embeddings)", ylabel="top-1 retrieval, %", ylim=(0, 102))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower right")
    return figure


def _name_extremes(axes: Axes, languages: Sequence[str], accuracy: np.ndarray, layer: int) -> None:
    """Write the names of the best and the worst language beside their curves, (K, L), at a layer."""
    if len(languages) < 2:
        return
    order = np.argsort(accuracy[:, layer], kind="stable")
    for row, offset in ((order[-1], 5), (order[0], -5)):
        axes.annotate(
            languages[row], (layer, accuracy[row, layer]), xytext=(0, offset), textcoords="offset points",
            ha="center", va="bottom" if offset > 0 else "top", color=_MUTED, fontsize=10,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------ similarity


def similarity_figure(cosines: Mapping[str, np.ndarray], *, pair: str) -> Figure:
    """Cosine of each sentence with each translation, side by side for several encoders on one colour scale.

    Args:
        cosines: Encoder -> (N, N); row i is a sentence, column i its translation.
        pair: Such as "en-de", for the labels.

    Returns:
        One panel for each encoder; a dot marks the nearest translation of each sentence.
    """
    source, _, target = pair.partition("-")
    lowest, highest = min(map(np.min, cosines.values())), max(map(np.max, cosines.values()))
    with rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9.2, 4.1))
        panels = figure.subplots(1, len(cosines), squeeze=False)[0]
        for axes, (label, matrix) in zip(panels, cosines.items(), strict=True):
            image = axes.imshow(matrix, cmap="cividis", vmin=lowest, vmax=highest)
            nearest, rows = matrix.argmax(axis=1), np.arange(len(matrix))
            axes.scatter(nearest, rows, s=16, color="white", edgecolors="black", linewidths=0.6)
            found = int((nearest == rows).sum())
            axes.set_title(f"{label}: {found} of {len(matrix)} translations found")
            axes.set(xlabel=f"sentence in {target}", ylabel=f"sentence in {source}")
        figure.colorbar(image, ax=panels, label="cosine (dot: nearest)", shrink=0.8)
    return figure


# ------------------------------------------------------------------------------------------ map of sentences


def sentence_map_figure(vectors: Mapping[str, np.ndarray], *, languages: Sequence[str]) -> Figure:
    """Map of the same sentences in several languages, side by side for several encoders.

    Each panel is laid out by t-SNE with the same settings and seed, on normalised vectors. t-SNE keeps
    neighbours, not distances, and finds groups in noise too; so each title gives a number counted in the full
    space.

    Args:
        vectors: Encoder -> (K, N, D): vectors of N sentences in K languages; [:, n] is one sentence in all.
        languages: The K codes; translations are joined by thin lines to the first.

    Returns:
        One panel for each encoder, a colour and a sign for each language.

    Raises:
        ValueError: If there are more languages than distinct colours.
    """
    if len(languages) > 1 + len(_LANGUAGE_COLORS):
        raise ValueError(
            f"the map has colours for {1 + len(_LANGUAGE_COLORS)} languages, found {len(languages)}."
        )
    with rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9.2, 5.2))
        panels = figure.subplots(1, len(vectors), squeeze=False)[0]
        for axes, (label, encoded) in zip(panels, vectors.items(), strict=True):
            normalised = encoded / np.linalg.norm(encoded, axis=-1, keepdims=True)
            _draw_map(axes, _two_dimensions(normalised), languages)
            share = _translation_is_nearest(normalised)
            axes.set_title(
                f"{label}: for {share:.0%} the nearest sentence\nof another language is a translation"
            )
        handles, _ = panels[0].get_legend_handles_labels()
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=len(languages),
            columnspacing=1,
            handletextpad=0.1,
        )
    return figure


def _two_dimensions(normalised: np.ndarray) -> np.ndarray:
    """Lay (K, N, D) out as (K, N, 2)."""
    rows = normalised.reshape(-1, normalised.shape[-1])
    perplexity = min(30, (len(rows) - 1) / 3)  # scikit-learn's default where there are rows enough for it
    # One thread: on a busy machine scikit-learn's threads wait for each other, 40 s where one alone needs 2.
    with threadpool_limits(1):
        points: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(rows)
    return points.reshape(*normalised.shape[:2], 2)


def _translation_is_nearest(normalised: np.ndarray) -> float:
    """Share of the K x N sentences whose nearest sentence of another language is one of its translations."""
    num_languages, num_sentences, width = normalised.shape
    rows = normalised.reshape(-1, width)
    language, sentence = np.divmod(np.arange(len(rows)), num_sentences)
    cosine = np.where(language[:, None] == language[None, :], -np.inf, rows @ rows.T)
    return float((sentence[cosine.argmax(axis=1)] == sentence).mean())


def _draw_map(axes: Axes, points: np.ndarray, languages: Sequence[str]) -> None:
    """One panel: stars for the first language, lines from each to its translations."""
    for other in points[1:]:
        lines = np.stack([points[0], other])  # (2 ends, N, 2)
        axes.plot(lines[..., 0], lines[..., 1], color="#BBBBBB", linewidth=0.5, zorder=1)
    colors, markers = ("black", *_LANGUAGE_COLORS), ("*", *_LANGUAGE_MARKERS)
    for i, (language, row) in enumerate(zip(languages, points, strict=True)):
        size, above = (26, 2) if i else (60, 3)
        xs, ys = row.T
        axes.scatter(
            xs, ys, s=size, color=colors[i], marker=markers[i], label=language, linewidths=0, zorder=above
        )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


# --------------------------------------------------------------------------------------- scores by language

_CELL_INCHES = (0.44, 0.34)  # width and height: a number of five characters fits
_CHARACTER_INCHES = 0.09  # of a row's label
_DARK_CELL = 0.55  # share of the colour scale up to which white text is easier to read
# Tol's "muted" again, in an order in which neighbours differ in lightness too.
_RADAR_COLORS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#DDCC77", "#44AA99")


def language_heat_map_figure(
    scores: Mapping[str, Sequence[float]], *, columns: Sequence[str], label: str
) -> Figure:
    """Score of each model in each language as colour and number.

    Args:
        scores: Model -> score of each language; NaN where there is none.
        columns: The languages.
        label: What the scores are, such as "accuracy, percent".

    Returns:
        One panel, a row for each model.
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
        name: Of the model, for the title.
        label: What the scores are.

    Returns:
        One panel; the title says how much is lost when the languages differ.
    """
    same = np.array([[first == second for second in columns] for first in rows])
    within, across = (np.nanmean(values[which]) if which.any() else np.nan for which in (same, ~same))
    title = f"{name}\nsame language {within:.1f}, different languages {across:.1f}"
    figure, axes = _heat_map(values, rows=rows, columns=columns, label=label, title=title)
    axes.set(ylabel=f"language of the {parts[0]}", xlabel=f"language of the {parts[1]}")
    return figure


def radar_figure(scores: Mapping[str, Sequence[float]], *, languages: Sequence[str], label: str) -> Figure:
    """Scores of several models around a circle of languages.

    The centre is not 0 but a round number below the lowest score, which the ring labels show.

    Args:
        scores: Model -> score of each language.
        languages: At least three.
        label: What the scores are.

    Returns:
        One polar panel, a closed line for each model.

    Raises:
        ValueError: If there are more models than distinct colours.
    """
    if len(scores) > len(_RADAR_COLORS):
        raise ValueError(f"the chart has colours for {len(_RADAR_COLORS)} models, found {len(scores)}.")
    values = np.array(list(scores.values()), dtype=np.float64)
    angles = np.linspace(0, 2 * np.pi, len(languages), endpoint=False)
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 6.4 + 0.25 * len(scores)))
        axes: Any = figure.add_subplot(projection="polar")
        axes.set_theta_offset(np.pi / 2)
        axes.set_theta_direction(-1)
        for (name, row), color in zip(scores.items(), _RADAR_COLORS, strict=False):
            closed = [*row, row[0]]
            axes.plot([*angles, angles[0]], closed, color=color, marker="o", markersize=4, label=name)
        axes.set_xticks(angles, languages)
        axes.set_ylim(*_round_limits(values))
        axes.set_rlabel_position(np.degrees(angles[1]) / 2)  # between two languages
        axes.tick_params(axis="y", labelsize=9, labelcolor=_MUTED)
        _title_of_figure(figure, f"{label}: {_extremes(values, languages)}")
        figure.legend(loc="outside lower center", ncols=1)
    return figure


def _heat_map(
    values: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], label: str, title: str
) -> tuple[Figure, Axes]:
    """Coloured cells with their numbers; a cell without a number stays white."""
    width = 1.8 + _CELL_INCHES[0] * len(columns) + _CHARACTER_INCHES * max(map(len, rows))
    with rc_context({**_STYLE, "axes.grid": False}):
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
    figure.suptitle(title, x=0.01, ha="left", fontsize=_STYLE["axes.titlesize"])


def _extremes(values: np.ndarray, columns: Sequence[str]) -> str:
    """Highest and lowest score of all rows (rows, columns), and in which language."""
    (low, lowest), (high, highest) = (
        (values.flat[place], columns[place % len(columns)])
        for place in (int(np.nanargmin(values)), int(np.nanargmax(values)))
    )
    return f"from {low:.1f} ({lowest}) to {high:.1f} ({highest})"


def _round_limits(values: np.ndarray) -> tuple[float, float]:
    """Limits for an axis that begins somewhat below the lowest value."""
    low, high = float(values.min()), float(values.max())
    step = 10 ** np.floor(np.log10(max(high - low, 0.1)))
    return float(np.floor(low / step - 0.5) * step), float(np.ceil(high / step) * step)

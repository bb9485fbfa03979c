"""Figures of the demo: losses, retrieval by layer, similarity of translations, map of sentences.

As those of `modeling_infoxlm.plots`, whose style they have: titles are made from the numbers drawn.

Shapes: N sentences, K languages, D hidden.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from modeling_infoxlm.plots import MUTED, STYLE, STYLE_OF_IMAGES, finish_layers, write_beside

OBJECTIVE_NAMES = {"mlm": "Masked LM", "tlm": "Translation LM", "xlco": "Cross-lingual contrast"}
UNTRAINED = "untrained"
# For colour-blind eyes too: Okabe and Ito's palette for runs, Tol's "muted" for languages after the first.
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
UNTRAINED_COLOR = "#8A8A8A"
LANGUAGE_COLORS = (
    *("black", "#332288", "#88CCEE", "#44AA99", "#117733"),
    *("#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499"),
)
LANGUAGE_MARKERS = "*os^DvP<X>"  # a second sign beside the colour

History = Sequence[Mapping[str, float]]


@rc_context(STYLE)
def losses_figure(histories: Mapping[str, History]) -> Figure:
    """Loss of each objective and held-out retrieval over the steps of one or more runs.

    Args:
        histories: Run -> its log history (`log_history` in `trainer_state.json`): entries with `step` and any
            of `loss/<objective>` and `information/<objective>` (training), `eval_loss/<objective>`,
            `eval_retrieval/<pair>` and `eval_retrieval/mean`.

    Returns:
        One panel for each objective that a run logged, and one for retrieval if a run measured it.
    """
    keys = {key for history in histories.values() for entry in history for key in entry}
    objectives = [name for name in OBJECTIVE_NAMES if f"loss/{name}" in keys]
    count = len(objectives) + ("eval_retrieval/mean" in keys)
    columns, rows = min(2, count), -(-count // 2)
    figure = Figure(figsize=(9.2, 3.2 * rows))
    panels = [figure.add_subplot(rows, columns, 1 + i) for i in range(count)]
    colors = run_colors(histories)
    for axes, objective in zip(panels, objectives, strict=False):
        _draw_loss(axes, histories, objective, colors)
    if "eval_retrieval/mean" in keys:
        _draw_retrieval(panels[-1], histories, colors)
    if len(histories) > 1:
        handles = [panels[-1].plot([], [], color=colors[run], label=run)[0] for run in histories]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(histories))
    return figure


def run_colors(labels: Iterable[str]) -> dict[str, str]:
    """Grey for the untrained encoder, then the palette in order."""
    trained = [label for label in labels if label != UNTRAINED]
    return {UNTRAINED: UNTRAINED_COLOR, **dict(zip(trained, RUN_COLORS, strict=False))}


def _series(history: History, key: str) -> np.ndarray:
    """Steps and values, (2, n), of the entries that have `key`."""
    return np.array([(entry["step"], entry[key]) for entry in history if key in entry]).reshape(-1, 2).T


def _draw_loss(
    axes: Axes, histories: Mapping[str, History], objective: str, colors: Mapping[str, str]
) -> None:
    """Loss of one objective: solid in training, dashed on held-out text, dotted for a guess.

    A guess among all candidates is drawn since a contrast would seem to get worse while its queue fills.
    """
    logged = [run for run, history in histories.items() if _series(history, f"loss/{objective}").size]
    for run in logged:
        axes.plot(*_series(histories[run], f"loss/{objective}"), color=colors[run])
        heldout = _series(histories[run], f"eval_loss/{objective}")
        if heldout.size:
            axes.plot(*heldout, color=colors[run], linestyle="--", marker="o", markersize=4)
    steps, losses = _series(histories[logged[0]], f"loss/{objective}")
    information = _series(histories[logged[0]], f"information/{objective}")[1]
    axes.plot(steps, losses + information, color=MUTED, linestyle=":", linewidth=1.5)
    write_beside(axes, "guess", (steps[-1], losses[-1] + information[-1]), (6, 0))
    gap = f"{abs(information[-1]):.1f} {'below' if information[-1] > 0 else 'above'} a guess"
    axes.set_title(f"{OBJECTIVE_NAMES[objective]}: {losses[-1]:.1f} nats, {gap}")
    axes.set(xlabel="step", ylabel="loss, nats (dashed: held out)", ylim=(0, None))


def _draw_retrieval(axes: Axes, histories: Mapping[str, History], colors: Mapping[str, str]) -> None:
    """Mean over the pairs in bold; of the first run also each pair, thin."""
    first_run, first = next(iter(histories.items()))
    keys = {key for entry in first for key in entry if key.startswith("eval_retrieval/")}
    for key in sorted(keys - {"eval_retrieval/mean"}):
        steps, shares = _series(first, key)
        axes.plot(steps, 100 * shares, color=colors[first_run], alpha=0.35, linewidth=0.8)
    changes = []
    for run, history in histories.items():
        steps, shares = _series(history, "eval_retrieval/mean")
        if shares.size:
            axes.plot(steps, 100 * shares, color=colors[run], marker="o", markersize=4)
            place = (steps[-1], 100 * shares[-1])
            write_beside(axes, f"{shares[-1]:.0%}", place, (6, 0), color=colors[run])
            changes.append(_change(shares[0], shares[-1]))
    axes.set_title(f"Held-out retrieval {changes[0]}")
    axes.set(xlabel="step", ylabel="top-1, % (thin: each pair)", ylim=(0, 100))


def _change(before: float, after: float) -> str:
    """How a share moved, as one reads it: rounded first, so that no title says "rises from 12% to 12%"."""
    old, new = f"{before:.0%}", f"{after:.0%}"
    if old == new:
        return f"stays at {new}"
    return f"{'rises' if after > before else 'falls'} from {old} to {new}"


@rc_context(STYLE)
def retrieval_by_layer_figure(curves: Mapping[str, Sequence[float]], *, marked_layer: int) -> Figure:
    """Mean held-out retrieval of each encoder at each of its layers.

    Args:
        curves: Encoder -> top-1 accuracy (0..1) at layers 0 (the embeddings), 1, ...; "untrained" is grey.
        marked_layer: Layer whose vectors the contrast trains.

    Returns:
        One panel, a curve for each encoder.
    """
    figure = Figure(figsize=(8, 4.4))
    axes, colors = figure.add_subplot(), run_colors(curves)
    for label, shares in curves.items():
        axes.plot(100 * np.array(shares), color=colors[label], marker="o", label=label)
    best = {label: int(np.argmax(shares)) for label, shares in curves.items()}
    shown = [f"{label} {curves[label][layer]:.0%} (layer {layer})" for label, layer in best.items()]
    axes.set_title(f"Best layer: {', '.join(shown)}")
    finish_layers(axes, marked_layer, "held-out top-1 retrieval, %")
    look: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "top", "fontsize": 10}
    write_beside(axes, "layer of the contrast", (marked_layer, 1), (-4, -4), **look)
    return figure


@rc_context(STYLE_OF_IMAGES)
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
    figure = Figure(figsize=(9.2, 4.1))
    panels = figure.subplots(1, len(cosines), squeeze=False)[0]
    for axes, (label, matrix) in zip(panels, cosines.items(), strict=True):
        image = axes.imshow(matrix, cmap="cividis", vmin=lowest, vmax=highest)
        nearest, rows = matrix.argmax(axis=1), np.arange(len(matrix))
        axes.scatter(nearest, rows, s=16, color="white", edgecolors="black", linewidths=0.6)
        axes.set_title(f"{label}: {(nearest == rows).sum()} of {len(matrix)} translations found")
        axes.set(xlabel=f"sentence in {target}", ylabel=f"sentence in {source}")
    figure.colorbar(image, ax=panels, label="cosine (dot: nearest)", shrink=0.8)
    return figure


@rc_context(STYLE_OF_IMAGES)
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
    if len(languages) > len(LANGUAGE_COLORS):
        raise ValueError(f"the map has colours for {len(LANGUAGE_COLORS)} languages, found {len(languages)}.")
    figure = Figure(figsize=(9.2, 5.2))
    panels = figure.subplots(1, len(vectors), squeeze=False)[0]
    for axes, (label, encoded) in zip(panels, vectors.items(), strict=True):
        normalised = encoded / np.linalg.norm(encoded, axis=-1, keepdims=True)
        _draw_map(axes, _two_dimensions(normalised), languages)
        share = translation_is_nearest(normalised)
        axes.set_title(f"{label}: for {share:.0%} the nearest sentence\nof another language is a translation")
    handles, _ = panels[0].get_legend_handles_labels()
    spaces: dict[str, float] = {"columnspacing": 1, "handletextpad": 0.1}
    figure.legend(handles=handles, loc="outside lower center", ncols=len(languages), **spaces)
    return figure


def _two_dimensions(normalised: np.ndarray) -> np.ndarray:
    """Lay (K, N, D) out as (K, N, 2)."""
    rows = normalised.reshape(-1, normalised.shape[-1])
    perplexity = min(30, (len(rows) - 1) / 3)  # scikit-learn's default where there are rows enough for it
    # One thread: on a busy machine scikit-learn's threads wait for each other, 40 s where one alone needs 2.
    with threadpool_limits(1):
        points: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(rows)
    return points.reshape(*normalised.shape[:2], 2)


def translation_is_nearest(normalised: np.ndarray) -> float:
    """Share of sentences, (K, N, D), whose nearest of another language is one of their translations."""
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
    for i, (language, (xs, ys)) in enumerate(zip(languages, points.transpose(0, 2, 1), strict=True)):
        size, above, sign = 26 if i else 60, 2 if i else 3, LANGUAGE_MARKERS[i]
        color = LANGUAGE_COLORS[i]
        axes.scatter(xs, ys, s=size, color=color, marker=sign, label=language, linewidths=0, zorder=above)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)

"""Figures: each curve, number and sign is the given one, and titles say what the numbers say."""

from pathlib import Path

import demo_figures as figures
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from modeling_infoxlm import plots


def history(objectives: tuple[str, ...] = ("mlm", "tlm", "xlco"), end: float = 0.8) -> list[dict[str, float]]:
    """Three log entries and two evaluations of two pairs; losses fall from 7 to 5 nats, a guess has 9."""
    entries: list[dict[str, float]] = []
    for step, loss in ((10, 7.0), (20, 6.0), (30, 5.0)):
        guesses = {f"information/{name}": 9 - loss for name in objectives}
        entries.append(
            {"step": step, "loss": 1.0, **{f"loss/{name}": loss for name in objectives}, **guesses}
        )
    for step, mean in ((0, 0.12), (30, end)):
        pairs = {"eval_retrieval/en-de": mean - 0.1, "eval_retrieval/en-fr": mean + 0.1}
        heldout = {f"eval_loss/{name}": 6.5 for name in objectives}
        entries.append({"step": step, **heldout, **pairs, "eval_retrieval/mean": mean})
    return entries


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def curves(figure: Figure, panel: int) -> list[list[float]]:
    return [list(line.get_ydata()) for line in figure.axes[panel].lines]


def texts(figure: Figure, panel: int) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def test_losses_draws_training_heldout_and_guess_of_each_objective_and_titles_follow_the_numbers() -> None:
    figure = figures.losses_figure({"trained": history()})
    assert titles(figure) == [
        "Masked LM: 5.0 nats, 4.0 below a guess",
        "Translation LM: 5.0 nats, 4.0 below a guess",
        "Cross-lingual contrast: 5.0 nats, 4.0 below a guess",
        "Held-out retrieval rises from 12% to 80%",
    ]
    for panel in range(3):
        assert curves(figure, panel) == [[7.0, 6.0, 5.0], [6.5, 6.5], [9.0, 9.0, 9.0]]
    assert np.allclose(curves(figure, 3), [[2, 70], [22, 90], [12, 80]])
    assert texts(figure, 3) == ["80%"]
    for end, change in ((0.05, "falls from 12% to 5%"), (0.123, "stays at 12%")):
        assert titles(figures.losses_figure({"run": history(end=end)}))[-1] == f"Held-out retrieval {change}"
    entries = [{"step": 1, "loss": 1.0, "loss/mlm": 9.5, "information/mlm": -0.5}]
    figure = figures.losses_figure({"run": entries})
    assert titles(figure) == ["Masked LM: 9.5 nats, 0.5 above a guess"] and len(curves(figure, 0)) == 2

    runs = {"trained": history(), "MLM+TLM only": history(("mlm", "tlm"), end=0.2)}
    figure = figures.losses_figure(runs)
    # Two of training, two held out, one guess; only one run has the contrast; pairs are drawn of the first.
    assert [len(curves(figure, panel)) for panel in range(3)] == [5, 5, 3]
    assert texts(figure, 3) == ["80%", "20%"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(runs)
    colors = [to_hex(line.get_color()) for line in figure.axes[3].lines[2:4]]
    assert len(set(colors)) == 2
    assert [to_hex(line.get_color()) for line in figure.legends[0].get_lines()] == colors


def test_retrieval_by_layer_names_each_curve_and_its_best_layer() -> None:
    shares = {"untrained": [0.13, 0.12, 0.1], "trained": [0.3, 0.8, 0.6], "MLM+TLM only": [0.1, 0.12, 0.11]}
    figure = figures.retrieval_by_layer_figure(shares, marked_layer=1)
    assert titles(figure) == [
        "Best layer: untrained 13% (layer 0), trained 80% (layer 1), MLM+TLM only 12% (layer 1)"
    ]
    *drawn, mark = curves(figure, 0)
    assert np.allclose(drawn, [[13, 12, 10], [30, 80, 60], [10, 12, 11]])
    assert list(figure.axes[0].lines[-1].get_xdata()) == [1, 1] and mark == [0, 1]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(shares)
    assert texts(figure, 0) == ["layer of the contrast"]
    grey, other = (to_hex(line.get_color()) for line in figure.axes[0].lines[:2])
    assert grey[1:3] == grey[3:5] == grey[5:7] and other[1:3] != other[3:5]
    assert figure.axes[0].lines[0].get_linewidth() == plots.STYLE["lines.linewidth"]


def test_similarity_marks_nearest_and_counts_them_on_one_colour_scale() -> None:
    before = np.array([[0.1, 0.9, 0.0], [0.0, 0.8, 0.1], [0.7, 0.0, 0.1]])
    figure = figures.similarity_figure({"untrained": before, "trained": np.eye(3) * 0.6}, pair="en-de")
    found = ["untrained: 1 of 3 translations found", "trained: 3 of 3 translations found"]
    assert titles(figure)[:2] == found
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert [image.get_clim() for image in images] == [(0.0, 0.9), (0.0, 0.9)]
    assert np.array_equal(images[0].get_array(), before)
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[1, 0], [1, 1], [0, 2]]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("sentence in de", "sentence in en")


def test_sentence_map_draws_every_sentence_and_joins_translations(tmp_path: Path) -> None:
    languages = ["en", "de", "el", "es", "fr", "hi", "ru", "tr", "vi", "zh"]
    noise = np.random.default_rng(0).normal(size=(len(languages), 6, 12))  # a direction for each sentence
    vectors = {"untrained": np.eye(6, 12) + 3.0 * noise, "trained": np.eye(6, 12) + 0.01 * noise}
    figure = figures.sentence_map_figure(vectors, languages=languages)
    for axes in figure.axes:
        assert [len(dots.get_offsets()) for dots in axes.collections] == [6] * len(languages)
        assert len(axes.lines) == 9 * 6
        ends = np.array([np.array(line.get_xydata()) for line in axes.lines])
        english, german = (np.array(axes.collections[i].get_offsets()) for i in (0, 1))
        assert np.allclose(ends[:6, 0], english) and np.allclose(ends[:6, 1], german)
    styles = {
        (to_hex(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes())
        for dots in figure.axes[0].collections
    }
    assert len({color for color, _ in styles}) == len({sign for _, sign in styles}) == len(languages)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == languages
    assert titles(figure)[1] == "trained: for 100% the nearest sentence\nof another language is a translation"

    plots.save_figure(figure, tmp_path / "map.png")
    content = (tmp_path / "map.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and int.from_bytes(content[16:20], "big") >= 1200


def test_map_number_is_counted_among_other_languages_only() -> None:
    # (2 languages, 2 sentences): within a language both sentences are equal, so they must not be candidates.
    # Both German sentences are nearest to English sentence 0.
    vectors = np.array([[[1.0, 0.1], [1.0, 0.0]], [[0.9, 0.3], [0.8, 0.4]]])
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    # en 0 -> de 0 right, en 1 -> de 0 wrong, de 0 -> en 0 right, de 1 -> en 0 wrong.
    assert figures.translation_is_nearest(unit) == 0.5

"""Retrieval results: each number is that of the vectors, layer by layer and direction by direction."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from reference.retrieval import accuracies, sentence_vectors
from tiny_encoder import save_tiny_encoder, word_tokenizer
from transformers import XLMRobertaModel

from modeling_infoxlm.evaluation.encoders import Encoder, EncoderArguments, load_encoder
from modeling_infoxlm.evaluation.results import DatasetRecord
from modeling_infoxlm.evaluation.retrieval import tatoeba
from modeling_infoxlm.evaluation.retrieval.bitext_sets import PAPER_LANGUAGES, XTREME_LANGUAGES, BitextSet
from modeling_infoxlm.evaluation.retrieval.tatoeba import (
    TatoebaArguments,
    evaluate_retrieval,
    resolve_layer,
    write_figure,
)
from modeling_infoxlm.runs.errors import UsageError

RECORD = DatasetRecord("made up", {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # With small weights the first tokens of all sentences are so alike that rounding would choose among them.
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"), initializer_range=0.3)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(EncoderArguments(model_name_or_path=str(folder)))


def make_set(language: str, *, seed: int, count: int = 40) -> BitextSet:
    """The other side says the sentence with one word changed, so a random encoder finds some of them."""
    draw = np.random.default_rng(seed)
    rows = [draw.integers(4, 59, draw.integers(2, 9)) for _ in range(count - 2)]
    rows += rows[:2]  # sentences that stand twice: only the first can be found
    others = [np.append(row[:-1], draw.integers(4, 59)) for row in rows]
    sides = [[" ".join(f"w{i}" for i in row) for row in side] for side in (rows, others)]
    return BitextSet(language, f"{language}-en", *sides)


def arguments(**given: Any) -> TatoebaArguments:
    return TatoebaArguments(data_dir="unused", **given)


def directions(result: tatoeba.TaskResult, language: str) -> list[float]:
    return [result.scores[language][name].value for name in tatoeba.DIRECTIONS]


@pytest.mark.parametrize(
    ("layer", "pooling", "similarity"), [(3, "mean", "cosine"), (1, "mean", "dot"), (2, "cls", "cosine")]
)
def test_accuracy_is_that_of_a_slow_search_in_both_directions(
    folder: Path, encoder: Encoder, layer: int, pooling: Any, similarity: Any
) -> None:
    sets = [make_set("de", seed=1), make_set("fr", seed=2)]
    options = {"layer": layer, "pooling": pooling, "similarity": similarity}
    result = evaluate_retrieval(encoder, sets, RECORD, arguments(**options))
    model, tokenizer = XLMRobertaModel.from_pretrained(folder).eval(), word_tokenizer()
    for one in sets:
        sides = (tokenizer(list(texts))["input_ids"] for texts in (one.source, one.target))
        vectors = (sentence_vectors(model, rows, layer, pooling) for rows in sides)
        expected = [100 * share for share in accuracies(*vectors, similarity)]
        assert directions(result, one.language) == pytest.approx(expected)
        assert result.scores[one.language]["accuracy"].value == pytest.approx(np.mean(expected))
        assert 0 < min(expected) and max(expected) < 100
        assert result.scores[one.language]["accuracy"].count == 40
    assert (result.settings["layer"], result.settings["search"]) == (layer, "exact")
    margins = [
        evaluate_retrieval(encoder, sets, RECORD, arguments(**options, margin="ratio", margin_neighbours=k))
        for k in (2, 20)
    ]
    assert [found.settings["margin_neighbours"] for found in margins] == [2, 20]
    every = [[directions(found, one.language) for one in sets] for found in (result, *margins)]
    assert every[0] != every[1] != every[2]


def test_every_layer_has_the_numbers_that_it_has_alone_and_the_figure_draws_them(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [make_set("de", seed=1), make_set("fr", seed=2)]
    together = evaluate_retrieval(encoder, sets, RECORD, arguments(layer=1, all_layers=True))
    curves = together.details["layers"]
    for layer in range(4):
        alone = evaluate_retrieval(encoder, sets, RECORD, arguments(layer=layer))
        assert "layers" not in alone.details
        for language in ("de", "fr"):
            assert [curves[language][name][layer] for name in tatoeba.DIRECTIONS] == pytest.approx(
                directions(alone, language)
            )
        means = [together.details["layer_means"][name][layer] for name in tatoeba.DIRECTIONS]
        assert means == pytest.approx([alone.summary[f"mean_{name}"] for name in tatoeba.DIRECTIONS])
    assert len({tuple(curves["de"][name]) for name in tatoeba.DIRECTIONS}) == 2
    json.dumps(asdict(together))  # no array, no tensor: without `default`

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda *args, **options: drawn.append(args[0]) or save(*args, **options)
    )
    path = write_figure(tmp_path / "out", together)
    assert path is not None and path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["tatoeba_layers.png"]
    axes = drawn[0].axes[0]
    lines: list[Any] = [np.asarray(line.get_ydata()) for line in axes.lines]
    expected = [np.mean([curves[code][name] for name in tatoeba.DIRECTIONS], axis=0) for code in ("de", "fr")]
    assert np.allclose(lines[:2], expected)
    assert np.allclose(lines[2:4], [together.details["layer_means"][name] for name in tatoeba.DIRECTIONS])
    means = np.mean(lines[2:4], axis=0)
    best = int(np.argmax(means))
    assert axes.get_title(loc="left").startswith(f"Best layer {best} with {means[best]:.1f}%")
    assert {text.get_text() for text in axes.texts} == {"de", "fr"}
    assert write_figure(path.parent, alone) is None and not list(path.parent.iterdir()), "the older one stays"


def test_sides_that_sets_share_and_sentences_that_stand_twice_are_encoded_once(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[list[str]] = []
    encode = Encoder.encode_layers
    monkeypatch.setattr(
        Encoder, "encode_layers", lambda *args, **options: encoded.append(args[1]) or encode(*args, **options)
    )
    english = make_set("de", seed=1).target
    sources = {code: make_set(code, seed=seed).source for seed, code in enumerate("xyz")}
    sets = [BitextSet(code, f"{code}-en", source, english) for code, source in sources.items()]
    evaluate_retrieval(encoder, sets, RECORD, arguments())
    assert len(encoded) == 4 and sum(texts == list(dict.fromkeys(english)) for texts in encoded) == 1
    assert all(len(texts) == len(set(texts)) for texts in encoded)


@pytest.mark.parametrize(
    ("languages", "groups"),
    [
        (XTREME_LANGUAGES, ["mean", "mean_14", "mean_36"]),
        (XTREME_LANGUAGES[1:], ["mean", "mean_14"]),  # Afrikaans is missing
        (PAPER_LANGUAGES[:13], ["mean"]),
    ],
)
def test_means_of_groups_only_when_they_are_complete(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, languages: tuple[str, ...], groups: list[str]
) -> None:
    """Language i finds i of 40 sentences forth and none back."""
    count = iter(range(len(languages)))
    monkeypatch.setattr(
        tatoeba, "translations_found", lambda *_, **__: (torch.arange(40) < next(count), torch.zeros(40) > 0)
    )
    sets = [make_set(language, seed=1) for language in languages]
    summary = evaluate_retrieval(encoder, sets, RECORD, arguments()).summary
    suffixes = ("", *(f"_{direction}" for direction in tatoeba.DIRECTIONS))
    assert list(summary) == [name + suffix for name in groups for suffix in suffixes]
    for name in groups:
        group = tatoeba.LANGUAGE_GROUPS.get(name, languages)
        forth = float(np.mean([languages.index(language) / 40 for language in group])) * 100
        assert summary[f"{name}_source_to_target"] == pytest.approx(forth)
        assert summary[name] == pytest.approx(forth / 2) and summary[f"{name}_target_to_source"] == 0


def test_default_layer(encoder: Encoder, tmp_path: Path) -> None:
    assert resolve_layer(encoder, None) == 3 and resolve_layer(encoder, 0) == 0
    save_tiny_encoder(tmp_path, num_hidden_layers=9)
    deep = load_encoder(EncoderArguments(model_name_or_path=str(tmp_path)))
    assert resolve_layer(deep, None) == 7
    module = {"type": "sentence_transformers.models.Transformer", "path": ""}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    assert resolve_layer(deep, None) == 9  # what such a folder gives, whatever the paper measured
    with pytest.raises(UsageError, match=r"layer must be in 0\.\.3, found 4"):
        resolve_layer(encoder, 4)

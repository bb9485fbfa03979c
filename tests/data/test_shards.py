"""Token shards: what is written is read back, and half-written files never pass for whole ones."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_sentences import SPECIAL

from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.data.shards import FORMAT_VERSION, Corpus, TokenStore, TokenStoreWriter
from modeling_infoxlm.runs.errors import DataError


def write(prefix: Path, sequences: list[list[int]]) -> Path:
    with TokenStoreWriter(prefix) as writer:
        for sequence in sequences:
            writer.append(sequence)
    return prefix


def test_shards_are_one_list_in_order_that_ends_however_it_was_written(tmp_path: Path) -> None:
    with TokenStoreWriter(tmp_path / "x.1") as writer:
        writer.append(np.array([2**32 - 1]))
        writer.extend(PackedRows(np.array([8, 9, 10], dtype=np.uint32), np.array([2, 0, 1])))
        assert (len(writer), writer.num_tokens) == (4, 4)
    store = TokenStore([write(tmp_path / "x.0", [[5, 6, 7], []]), tmp_path / "x.1"])
    assert len(store) == 6
    assert [store[i].tolist() for i in range(6)] == [[5, 6, 7], [], [2**32 - 1], [8, 9], [], [10]]
    assert store[-1].tolist() == [10]
    assert store[0].dtype == np.uint32
    for index in (6, -7):
        with pytest.raises(IndexError, match="6 sequences"):
            store[index]
    with pytest.raises(IndexError):
        store.gather(np.array([0, 6]))
    with pytest.raises(IndexError):
        store.lengths(np.array([-1]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_gather_equals_a_loop(tmp_path: Path, data: st.DataObject) -> None:
    sequence = st.lists(st.integers(0, 2**32 - 1), max_size=5)
    groups = data.draw(st.lists(st.lists(sequence, max_size=4), min_size=1, max_size=4))
    store = TokenStore([write(tmp_path / str(number), group) for number, group in enumerate(groups)])
    flat = [sequence for group in groups for sequence in group]
    assert len(store) == len(flat)
    indices = data.draw(st.lists(st.integers(0, len(flat) - 1), max_size=8)) if flat else []
    tokens, lengths = store.gather(np.array(indices, dtype=np.int64))
    assert tokens.tolist() == [token for index in indices for token in flat[index]]
    assert lengths.tolist() == [len(flat[index]) for index in indices]
    assert store.lengths(np.array(indices, dtype=np.int64)).tolist() == lengths.tolist()


def test_nothing_is_visible_before_the_end_and_nothing_left_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), TokenStoreWriter(tmp_path / "x") as writer:
        writer.append([1, 2])
        assert not (tmp_path / "x.tokens").exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_cut_and_missing_shards_are_refused(tmp_path: Path) -> None:
    prefix = write(tmp_path / "x", [[5, 6, 7], [], [8, 9, 10, 11]])
    with open(tmp_path / "x.tokens", "r+b") as file:
        file.truncate(8)
    with pytest.raises(DataError, match="holds 2 tokens but its offsets say 7"):
        TokenStore([prefix])
    (tmp_path / "x.tokens").unlink()
    with pytest.raises(DataError, match="missing"):
        TokenStore([prefix])
    prefix = write(tmp_path / "y", [[5, 6, 7], []])
    for size in (12, 0):
        with open(tmp_path / "y.offsets", "r+b") as file:
            file.truncate(size)
        with pytest.raises(DataError, match="offsets are no whole number; it was cut short"):
            TokenStore([prefix])


def manifest(tmp_path: Path, **changes: object) -> None:
    entry = {"num_examples": 2, "num_sentences": 2, "num_tokens": 6, "max_length": 3, "dropped": {"empty": 1}}
    file = {"path": "a", "size": 1, "mtime_ns": 2, "sha256": "x"}
    content = {
        "format_version": FORMAT_VERSION,
        "tokenizer": {"name": "t", "sha256": "x", "vocab_size": 1000, "special": asdict(SPECIAL)},
        "settings": {"max_length": 16},
        "sources": [{"kind": "mono", "languages": ["de"], "files": [file]}],
        "mono": {"de": {**entry, "shards": ["mono/de/a", "mono/de/b"]}},
        "bitext": {"zh_Hans-en": {**entry, "shards": ["bitext/zh_Hans-en/a"]}},
        "heldout": {"zh_Hans-en": {**entry, "shards": ["heldout/zh_Hans-en"]}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps({**content, **changes}))
    write(tmp_path / "mono/de/a", [[0, 5, 2]])
    write(tmp_path / "mono/de/b", [[0, 6, 2]])
    for prefix in ("bitext/zh_Hans-en/a", "heldout/zh_Hans-en"):
        write(tmp_path / f"{prefix}.source", [[5], [6]])
        write(tmp_path / f"{prefix}.target", [[7, 7], [8]])
    (tmp_path / "heldout/zh_Hans-en.tsv").write_text("一\u2028\tone\n二\ttwo\n", encoding="utf-8")


def test_corpus_opens_all_its_stores(tmp_path: Path) -> None:
    manifest(tmp_path)
    corpus = Corpus.open(tmp_path)
    assert [corpus.mono["de"][index].tolist() for index in range(2)] == [[0, 5, 2], [0, 6, 2]]
    pairs = corpus.bitext["zh_Hans-en"]
    assert (pairs.source_language, pairs.target_language, len(pairs)) == ("zh_Hans", "en", 2)
    assert pairs.target[0].tolist() == [7, 7]
    assert corpus.heldout_text("zh_Hans-en") == [("一\u2028", "one"), ("二", "two")]
    assert (corpus.max_length, corpus.special) == (16, SPECIAL)


def test_corpus_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="infoxlm prepare"):
        Corpus.open(tmp_path)
    manifest(tmp_path, format_version=7)
    with pytest.raises(DataError, match=f"format version 7, expected {FORMAT_VERSION}"):
        Corpus.open(tmp_path)
    manifest(tmp_path)
    write(tmp_path / "bitext/zh_Hans-en/a.target", [[7]])
    with pytest.raises(DataError, match="2 source but 1 target"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "is no JSON file"),
        (b"[1]", "format version None"),
        (b'{"format_version": 2}', "tokenizer is missing"),
        ({"tokenizer": None}, "tokenizer: expected an object, found null"),
        ({"settings": {"max_length": "64"}}, "settings.max_length: expected a whole number"),
        ({"sources": [{"kind": "mono", "languages": "de"}]}, "sources.0.languages: expected a list"),
        ({"mono": {"de": {"shards": []}}}, "mono.de.num_examples is missing"),
        ({"mono": {"de": 3}}, "mono.de: expected an object"),
    ],
)
def test_a_manifest_of_a_wrong_shape_is_one_line(tmp_path: Path, content: Any, complaint: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "manifest.json").write_bytes(content)
    else:
        manifest(tmp_path, **content)
    with pytest.raises(DataError, match=rf"manifest\.json.*{re.escape(complaint)}.*prepare it again"):
        Corpus.open(tmp_path)

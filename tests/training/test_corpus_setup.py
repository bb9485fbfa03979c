"""Tokenizer and corpus of a run: made once from the text, found again, and refused where they do not fit."""

from pathlib import Path
from typing import Any

import pytest
from tiny_text import sentence_pairs, write_pairs
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_infoxlm.data.sources import Source
from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.training.arguments import DataArguments, ModelArguments
from modeling_infoxlm.training.corpus_setup import find_tokenizer, open_or_prepare, parse_sources


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "text" / "en-xx.tsv", sentence_pairs(30))


def arguments(**values: Any) -> DataArguments:
    small = {"max_seq_length": 64, "tokenizer_vocab_size": 100, "preprocessing_num_workers": 1}
    return DataArguments(**{**small, **values})


def trained(data: DataArguments, folder: Path) -> PreTrainedTokenizerBase:
    return find_tokenizer(ModelArguments(), data, folder)


def test_both_kinds_of_text_are_sources(text: Path) -> None:
    mono = text.parent / "de.txt"
    mono.write_text("ein Satz\n")
    found = parse_sources(arguments(bitext_files=[str(text)], mono_files=[str(mono)]))
    assert found == [Source(("en", "xx"), (str(text),)), Source(("de",), (str(mono),))]


# ---------------------------------------------------------------------------- tokenizer


def test_a_tokenizer_is_trained_once_into_the_run_and_a_named_one_loaded(text: Path, tmp_path: Path) -> None:
    data = arguments(bitext_files=[str(text)])
    first = trained(data, tmp_path / "out")
    assert len(first) > 50 and first.model_max_length == 64
    text.write_text("ganz\tanders\n")  # would give another one
    assert trained(data, tmp_path / "out").get_vocab() == first.get_vocab()
    assert trained(data, tmp_path / "other").get_vocab() != first.get_vocab()
    named, model = str(tmp_path / "out/tokenizer"), str(tmp_path / "other/tokenizer")
    for given, vocabulary_of in (
        (ModelArguments(tokenizer_name=named, model_name_or_path=model), named),
        (ModelArguments(model_name_or_path=model), model),
    ):
        found = find_tokenizer(given, data, tmp_path / "third")
        assert found.get_vocab() == AutoTokenizer.from_pretrained(vocabulary_of).get_vocab()
    assert not (tmp_path / "third").exists()


# ---------------------------------------------------------------------------- corpus


@pytest.fixture
def tokenizer(text: Path, tmp_path: Path) -> PreTrainedTokenizerBase:
    return trained(arguments(bitext_files=[str(text)]), tmp_path / "made")


def test_another_tokenizer_is_refused(text: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    folder = str(tmp_path / "corpus")
    open_or_prepare(arguments(bitext_files=[str(text)], prepared_data=folder), tokenizer, tmp_path)
    other = trained(arguments(bitext_files=[str(text)], tokenizer_vocab_size=60), tmp_path / "second")
    sizes = rf"\({len(tokenizer)} tokens\), not with .* \({len(other)} tokens\)"
    with pytest.raises(DataError, match=f"corpus was prepared with tokenizer .*made/tokenizer' {sizes}"):
        open_or_prepare(arguments(prepared_data=folder), other, tmp_path)
    with pytest.raises(DataError, match="prepared differently: the tokenizer was .*made/tokenizer'"):
        open_or_prepare(arguments(bitext_files=[str(text)], prepared_data=folder), other, tmp_path)


def test_neither_text_nor_a_prepared_folder(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no text: give --bitext_files .*data holds no manifest\.json"):
        open_or_prepare(arguments(), tokenizer, tmp_path)
    empty = tmp_path / "empty"
    with pytest.raises(DataError, match=r"as --prepared_data \(.*empty holds no manifest\.json"):
        open_or_prepare(arguments(prepared_data=str(empty)), tokenizer, tmp_path)
    with pytest.raises(DataError, match="needs a tokenizer: give --tokenizer_name, or --bitext_files"):
        trained(arguments(), tmp_path)

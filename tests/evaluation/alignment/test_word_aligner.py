"""Words aligned by an encoder: what is encoded, and whose link a sub-word's is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_alignment import SOURCES, TARGETS, save_sub_word_encoder
from torch import Tensor

from modeling_infoxlm.evaluation.alignment import word_aligner
from modeling_infoxlm.evaluation.alignment.aligners import align_states
from modeling_infoxlm.evaluation.alignment.scoring import Link
from modeling_infoxlm.evaluation.alignment.word_aligner import Context, Method, WordAligner
from modeling_infoxlm.evaluation.encoders import Encoder, EncoderArguments, load_encoder
from modeling_infoxlm.runs.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sub_word_encoder(tmp_path_factory.mktemp("model") / "xlmr")


@pytest.fixture
def encoder(folder: Path) -> Encoder:
    return load_encoder(EncoderArguments(model_name_or_path=str(folder)))


def ids(words: Sequence[str]) -> tuple[list[int], list[int]]:
    pairs = [(int(piece[1:]), i) for i, word in enumerate(words) for piece in word.split("+") if piece]
    return [piece for piece, _ in pairs], [i for _, i in pairs]


def pair_states(
    encoder: Encoder, left: list[int], right: list[int], layer: int, context: Context
) -> tuple[Tensor, Tensor]:
    """Hidden states of both sides, a sequence at a time."""

    def states(row: list[int]) -> Tensor:
        with torch.no_grad():
            output = encoder.model(torch.tensor([row]), output_hidden_states=True)
        return output.hidden_states[layer][0]

    if context == "pair":
        hidden = states([0, *left, 2, *right, 2])
        return hidden[1 : 1 + len(left)], hidden[2 + len(left) : -1]
    return states([0, *left, 2])[1:-1], states([0, *right, 2])[1:-1]


@pytest.mark.parametrize(
    ("method", "context", "layer"),
    [("ot", None, 0), ("ot", None, 3), ("ot", "single", 3), ("argmax", None, 2), ("itermax", None, 2)],
)
def test_links_are_those_of_the_states_of_each_pair(
    encoder: Encoder, method: Method, context: Any, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transport reads a pair as one sequence, SimAlign each sentence alone, unless asked."""
    monkeypatch.setattr(word_aligner, "_CPU_TOKENS_PER_BATCH", 20)
    found = WordAligner(encoder, method=method, context=context, layers=[layer]).align(SOURCES, TARGETS)
    read: Context = context or ("pair" if method == "ot" else "single")
    for source, target, (links,) in zip(SOURCES, TARGETS, found, strict=True):
        (left, left_words), (right, right_words) = ids(source), ids(target)
        expected: set[Link] = set()
        if left:
            aligned = align_states(*pair_states(encoder, left, right, layer, read), method)
            expected = {(left_words[i], right_words[j]) for i, j in aligned.nonzero().tolist()}
        assert links == expected
    assert sum(len(links) for (links,) in found) > 5


def test_all_layers_in_one_pass_are_the_layers_alone(encoder: Encoder) -> None:
    """Padded at their beginning, the states of all but the longest sentence were those of other words."""
    together = WordAligner(encoder).align(SOURCES, TARGETS)
    for layer in range(encoder.num_layers + 1):
        alone = WordAligner(encoder, layers=[layer]).align(SOURCES, TARGETS)
        assert [links[layer] for links in together] == [links[0] for links in alone]
    encoder.tokenizer.padding_side = "left"
    assert WordAligner(encoder).align(SOURCES, TARGETS) == together


def test_what_cannot_be_aligned_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="one translation for each of 1 sentences, found 2"):
        WordAligner(encoder).align([["w4"]], [["w5"], ["w6"]])
    with pytest.raises(UsageError, match="layer must be in 0..3, found 4"):
        WordAligner(encoder, layers=[4])
    encoder.model.get_input_embeddings().weight.data[9] = float("inf")
    assert WordAligner(encoder).align([["w4"]], [["w5"]])
    with pytest.raises(UsageError, match="not finite, first for 'w5 w9'"):
        WordAligner(encoder, method="argmax").align([["w4"], ["w6"]], [["w7"], ["w5", "w9"]])


def test_words_without_sub_words_stay_unaligned_and_keep_their_place(encoder: Encoder) -> None:
    aligner = WordAligner(encoder, layers=[2])
    ((plain,),) = aligner.align([["w4", "w5", "w6"]], [["w20", "w21", "w22"]])
    ((spaced,),) = aligner.align([["+", "w4", "w5", "+", "w6"]], [["w20", "+", "w21", "w22"]])
    source, target = [1, 2, 4], [0, 2, 3]
    assert plain and spaced == {(source[i], target[j]) for i, j in plain}
    assert aligner.align([["+"]], [["w20"]]) == [[set()]]


def test_longer_pairs_are_cut_and_counted(encoder: Encoder) -> None:
    aligner = WordAligner(encoder, layers=[2])
    many, few = [f"w{4 + i % 50}" for i in range(60)], ["w20", "w21"]
    # 37 places beside three special tokens: the short side is whole.
    assert aligner.align([many, few], [few, many]) == aligner.align([many[:35], few], [few, many[:35]])
    assert aligner.num_cut == 2
    assert aligner.align([many], [many]) == aligner.align([many[:18]], [many[:19]])
    single = WordAligner(encoder, layers=[2], method="argmax")
    assert single.align([many], [many]) == single.align([many[:38]], [many[:38]])

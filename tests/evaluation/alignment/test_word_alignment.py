"""Word alignment: the published methods, the scores of Och and Ney, and files that people made."""

import json
import logging
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import VOCAB, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from modeling_infoxlm.evaluation.alignment import word_alignment
from modeling_infoxlm.evaluation.alignment.word_alignment import (
    AlignmentCounts,
    GoldAlignment,
    Link,
    PairFiles,
    WordAligner,
    align_words_command,
    alignment_rates,
    alignment_scores,
    argmax_alignment,
    estimate_rates,
    itermax_alignment,
    read_gold,
    read_words,
    sinkhorn,
    transport_alignment,
)
from modeling_infoxlm.evaluation.encoders import Encoder, EncoderArguments, load_encoder
from modeling_infoxlm.hub.formats import save_as_xlm_roberta
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import run_main
from modeling_infoxlm.runs.provenance import read_result

# ---------------------------------------------------------------------------- scores


def test_scores_of_a_hand_made_sentence() -> None:
    # Three links; two are sure, one of the three is wrong though (2, 1) would have been possible.
    counts = alignment_scores({(0, 0), (1, 1), (2, 2)}, {(0, 0), (1, 1)}, {(2, 1)})
    assert counts == AlignmentCounts(predicted=3, sure=2, in_sure=2, in_possible=2)
    rates = alignment_rates(np.array(counts))
    assert rates["precision"] == pytest.approx(200 / 3)
    assert rates["recall"] == pytest.approx(100)
    assert rates["f1"] == pytest.approx(80)
    assert rates["aer"] == pytest.approx(100 * (1 - (2 + 2) / (3 + 2)))


def test_a_possible_link_counts_for_precision_and_never_for_recall() -> None:
    counts = alignment_scores([(0, 0), (1, 1)], [(0, 0), (3, 3)], [(0, 0), (1, 1), (3, 3)])
    assert counts == AlignmentCounts(predicted=2, sure=2, in_sure=1, in_possible=2)
    assert alignment_rates(np.array(counts))["aer"] == pytest.approx(25)


def test_gold_against_itself_has_no_error() -> None:
    links = [(0, 0), (1, 2), (1, 3)]
    rates = alignment_rates(np.array(alignment_scores(links, links, links)))
    assert {metric: float(rate) for metric, rate in rates.items()} == {
        "aer": 0, "precision": 100, "recall": 100, "f1": 100,
    }  # fmt: skip


def test_rates_of_nothing_are_numbers() -> None:
    for counts in (AlignmentCounts(0, 0, 0, 0), AlignmentCounts(0, 3, 0, 0), AlignmentCounts(3, 0, 0, 0)):
        rates = alignment_rates(np.array(counts))
        assert rates["f1"] == rates["precision"] == rates["recall"] == 0
        assert rates["aer"] == (100 if sum(counts) else 0)


def test_rates_are_of_all_sentences_together() -> None:
    # A long sentence with errors and a short one without: the mean of the sentences' own rates would be 25.
    counts = [AlignmentCounts(9, 9, 4, 5), AlignmentCounts(1, 1, 1, 1)]
    estimate = estimate_rates(counts)["aer"]
    assert estimate.value == pytest.approx(100 * (1 - (5 + 6) / 20))
    assert estimate.count == 2
    assert 0 <= estimate.low < 20 and 70 < estimate.high <= 100  # two sentences say little


# ---------------------------------------------------------------------------- methods, against slow loops


def similarities(seed: int, *, lowest: float = -1.0) -> Tensor:
    """Random, of random shape, with ties."""
    draw = random.Random(seed)
    m, n = draw.randint(1, 7), draw.randint(1, 7)
    return torch.tensor([[round(draw.uniform(lowest, 3), 1) for _ in range(n)] for _ in range(m)])


def first_highest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))


def mutual(rows_by: list[list[float]], columns_by: list[list[float]]) -> set[Link]:
    """Pairs that are the row's best in one table and the column's best in the other."""
    m, n = len(rows_by), len(rows_by[0])
    return {
        (i, j)
        for i in range(m)
        for j in range(n)
        if first_highest(rows_by[i]) == j and first_highest([columns_by[k][j] for k in range(m)]) == i
    }


def slow_sinkhorn(similarity: list[list[float]], rounds: int) -> tuple[list[list[float]], list[list[float]]]:
    """XLM-Align: divide by the sums over sources, then over targets, in turn; return both."""
    m, n = len(similarity), len(similarity[0])
    pi = [[value if value > 0 else 1e-6 for value in row] for row in similarity]
    xi = pi
    for _ in range(rounds):
        sums = [sum(pi[i][j] for i in range(m)) for j in range(n)]
        xi = [[pi[i][j] / sums[j] for j in range(n)] for i in range(m)]
        pi = [[value / sum(row) for value in row] for row in xi]
    return pi, xi


def slow_itermax(similarity: list[list[float]], rounds: int) -> set[Link]:
    """SimAlign: words without a partner look again, at 0.9 where the other has one."""
    m, n = len(similarity), len(similarity[0])
    found = mutual(similarity, similarity)
    if min(m, n) <= 2:
        return found
    for _ in range(rounds - 1):
        rows_taken, columns_taken = {i for i, _ in found}, {j for _, j in found}
        if len(rows_taken) == m or len(columns_taken) == n:
            break
        weighted = [
            [
                similarity[i][j] * {0: 1.0, 1: 0.9, 2: 0.0}[(i in rows_taken) + (j in columns_taken)]
                for j in range(n)
            ]
            for i in range(m)
        ]
        new = {(i, j) for i, j in mutual(weighted, weighted) if not (i in rows_taken and j in columns_taken)}
        if not new - found:
            break
        found = found | new
    return found


def links_of(aligned: Tensor) -> set[Link]:
    return {(i, j) for i, j in aligned.nonzero().tolist()}


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_transport_equals_the_slow_loop(rounds: int) -> None:
    for seed in range(60):
        similarity = similarities(seed).double()
        pi, xi = slow_sinkhorn(similarity.tolist(), rounds)
        fast_pi, fast_xi = sinkhorn(similarity, iterations=rounds)
        assert torch.allclose(fast_pi, torch.tensor(pi, dtype=torch.float64), rtol=1e-9)
        assert torch.allclose(fast_xi, torch.tensor(xi, dtype=torch.float64), rtol=1e-9)
        expected = mutual(fast_pi.tolist(), fast_xi.tolist())
        assert links_of(transport_alignment(similarity, iterations=rounds)) == expected


def test_transport_leaves_its_input_alone_and_differs_from_argmax() -> None:
    # Target 0 is near to both; the plan leaves it to source 0 and gives target 1 to source 1.
    similarity = torch.tensor([[10.0, 1.0], [9.0, 8.0]])
    assert links_of(argmax_alignment(similarity)) == {(0, 0)}
    assert links_of(transport_alignment(similarity)) == {(0, 0), (1, 1)}
    assert similarity.tolist() == [[10.0, 1.0], [9.0, 8.0]]


def test_argmax_equals_the_slow_loop_with_ties() -> None:
    for seed in range(100):
        similarity = similarities(seed)
        assert links_of(argmax_alignment(similarity)) == mutual(similarity.tolist(), similarity.tolist())


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_itermax_equals_the_slow_loop(rounds: int) -> None:
    more = 0
    for seed in range(200):
        similarity = similarities(seed, lowest=0.0).double()
        expected = slow_itermax(similarity.tolist(), rounds)
        assert links_of(itermax_alignment(similarity, rounds=rounds)) == expected
        more += len(expected) - len(mutual(similarity.tolist(), similarity.tolist()))
    assert more > 50 or rounds == 1


@pytest.mark.parametrize("method", [transport_alignment, argmax_alignment, itermax_alignment])
def test_layers_are_aligned_each_by_itself(method: Any) -> None:
    layers = torch.rand(5, 6, 4, generator=torch.Generator().manual_seed(1))
    together = method(layers)
    assert all(torch.equal(together[k], method(layers[k])) for k in range(5))


# ---------------------------------------------------------------------------- sentences


def sub_word_tokenizer() -> PreTrainedTokenizerFast:
    """w4, w5, ... are their own ids, in XLM-R's layout; `w4+w5` is one word of two sub-words, `+` of none."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, VOCAB)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("+", "removed")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "xlmr"
    # Larger weights than at the start of training: layers differ, and neighbours change a word's state. With
    # still larger ones all words become alike, and rounding chooses the links.
    model = tiny_model(max_position_embeddings=42, initializer_range=0.2)
    save_as_xlm_roberta(model, path, tokenizer=sub_word_tokenizer())
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(EncoderArguments(model_name_or_path=str(folder)))


SOURCES = [["w4", "w5+w6", "w7"], ["w8"], [], ["w9", "w10+w11+w12"], [f"w{i}" for i in range(40, 49)]]
TARGETS = [["w20", "w21"], ["w22+w23", "w24"], ["w25"], ["w26", "w27", "w28"], ["w30+w31"]]


def states(encoder: Encoder, rows: list[list[int]], layer: int) -> list[Tensor]:
    """Hidden states of each row, a row at a time."""
    with torch.no_grad():
        return [
            encoder.model(torch.tensor([row]), output_hidden_states=True).hidden_states[layer][0]
            for row in rows
        ]


def ids(words: Sequence[str]) -> tuple[list[int], list[int]]:
    pairs = [(int(piece[1:]), i) for i, word in enumerate(words) for piece in word.split("+") if piece]
    return [piece for piece, _ in pairs], [i for _, i in pairs]


@pytest.mark.parametrize("layer", [0, 3])
def test_transport_reads_the_pair_as_one_sequence(encoder: Encoder, layer: int) -> None:
    found = WordAligner(encoder, layers=[layer]).align(SOURCES, TARGETS)
    for source, target, (links,) in zip(SOURCES, TARGETS, found, strict=True):
        (left, left_words), (right, right_words) = ids(source), ids(target)
        (hidden,) = states(encoder, [[0, *left, 2, *right, 2]], layer)
        product = hidden[1 : 1 + len(left)] @ hidden[2 + len(left) : -1].T
        expected = links_of(transport_alignment(product)) if left else set()
        assert links == {(left_words[i], right_words[j]) for i, j in expected}
    assert sum(len(links) for (links,) in found) > 5


@pytest.mark.parametrize("method", ["argmax", "itermax"])
def test_simalign_reads_each_sentence_alone(encoder: Encoder, method: Any) -> None:
    found = WordAligner(encoder, method=method, layers=[2]).align(SOURCES, TARGETS)
    for source, target, (links,) in zip(SOURCES, TARGETS, found, strict=True):
        (left, left_words), (right, right_words) = ids(source), ids(target)
        if not left:
            assert links == set()
            continue
        first, second = (part[1:-1] for part in states(encoder, [[0, *left, 2], [0, *right, 2]], 2))
        cosine = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=-1)
        align = argmax_alignment if method == "argmax" else itermax_alignment
        expected = links_of(align((cosine + 1) / 2))
        assert links == {(left_words[i], right_words[j]) for i, j in expected}


def test_context_can_be_chosen(encoder: Encoder) -> None:
    single = WordAligner(encoder, context="single", layers=[3]).align(SOURCES, TARGETS)
    for source, target, (links,) in zip(SOURCES, TARGETS, single, strict=True):
        (left, left_words), (right, right_words) = ids(source), ids(target)
        if left:
            first, second = (part[1:-1] for part in states(encoder, [[0, *left, 2], [0, *right, 2]], 3))
            expected = links_of(transport_alignment(first @ second.T))
            assert links == {(left_words[i], right_words[j]) for i, j in expected}


def test_all_layers_in_one_pass_are_the_layers_alone(encoder: Encoder) -> None:
    together = WordAligner(encoder).align(SOURCES, TARGETS)
    for layer in range(encoder.num_layers + 1):
        alone = WordAligner(encoder, layers=[layer]).align(SOURCES, TARGETS)
        assert [links[layer] for links in together] == [links[0] for links in alone]


def test_the_side_that_a_tokenizer_pads_on_changes_no_link(encoder: Encoder, folder: Path) -> None:
    """Padded at their beginning, the states of all but the longest sentence were those of other words."""
    other = load_encoder(EncoderArguments(model_name_or_path=str(folder)))
    other.tokenizer.padding_side = "left"
    for method in ("ot", "argmax"):
        links = [WordAligner(one, method=method).align(SOURCES, TARGETS) for one in (encoder, other)]
        assert links[0] == links[1]


def test_batches_and_windows_keep_the_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WordAligner(encoder).align(SOURCES * 3, TARGETS * 3)
    monkeypatch.setattr(word_alignment, "_CPU_TOKENS_PER_BATCH", 20)
    assert WordAligner(encoder).align(SOURCES * 3, TARGETS * 3) == whole


def test_states_that_are_not_finite_are_refused(folder: Path) -> None:
    encoder = load_encoder(EncoderArguments(model_name_or_path=str(folder)))
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
    assert encoder.max_length == 40
    aligner = WordAligner(encoder, layers=[2])
    many, few = [f"w{4 + i % 50}" for i in range(60)], ["w20", "w21"]
    # 37 places beside three special tokens: the short side is whole.
    assert aligner.align([many, few], [few, many]) == aligner.align([many[:35], few], [few, many[:35]])
    assert aligner.num_cut == 2
    assert aligner.align([many], [many]) == aligner.align([many[:18]], [many[:19]])
    single = WordAligner(encoder, layers=[2], method="argmax")
    assert single.align([many], [many]) == single.align([many[:38]], [many[:38]])


def test_unequal_sides_and_missing_layers_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="one translation for each of 1 sentences, found 2"):
        WordAligner(encoder).align([["w4"]], [["w5"], ["w6"]])
    with pytest.raises(UsageError, match="layer must be in 0..3, found 4"):
        WordAligner(encoder, layers=[4])


# ---------------------------------------------------------------------------- files


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


def test_words_are_divided_by_blanks_only(tmp_path: Path) -> None:
    source = write(tmp_path / "test.fr", "10\u00a0000 \u20ac\u2028 .\r\n\n")
    target = write(tmp_path / "test.en", "10,000  \tEUR .\n\n")
    sources, targets = read_words(PairFiles("fr-en", (source, target), None))
    assert sources == [["10\u00a0000", "\u20ac\u2028", "."], []]
    assert targets == [["10,000", "EUR", "."], []]


def test_joined_file_is_read_as_two(tmp_path: Path) -> None:
    joined = write(tmp_path / "pairs.txt", "das Haus ||| the house\n ||| nothing\nnichts |||\n")
    assert read_words(PairFiles("de-en", (joined,), None)) == (
        [["das", "Haus"], [], ["nichts"]],
        [["the", "house"], ["nothing"], []],
    )


def test_gold_of_a_line_for_each_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "gold", "0-0 1p2 1-1\n\n0p0\n")
    gold = read_gold(path, [(2, 3), (1, 1), (1, 1)])
    assert gold == [
        GoldAlignment(frozenset({(0, 0), (1, 1)}), frozenset({(0, 0), (1, 1), (1, 2)})),
        GoldAlignment(frozenset(), frozenset()),
        GoldAlignment(frozenset(), frozenset({(0, 0)})),
    ]
    numbered = write(tmp_path / "numbered", "0\t0-0 1p2 1-1\n1\t\n2\t0p0\n")
    assert read_gold(numbered, [(2, 3), (1, 1), (1, 1)]) == gold
    from_one = write(tmp_path / "from-one", "1-1 2p3 2-2\n\n1p1\n")
    assert read_gold(from_one, [(2, 3), (1, 1), (1, 1)], index_base=1) == gold


def test_gold_of_a_line_for_each_link(tmp_path: Path) -> None:
    path = write(tmp_path / "gold", "1 1 1 S\n0001 2 3 P\n1 2 2\n\n3 1 1 P\n")
    assert read_gold(path, [(2, 3), (1, 1), (1, 1)]) == [
        GoldAlignment(frozenset({(0, 0), (1, 1)}), frozenset({(0, 0), (1, 1), (1, 2)})),
        None,  # not annotated
        GoldAlignment(frozenset(), frozenset({(0, 0)})),
    ]
    from_zero = write(tmp_path / "from-zero", "1 0 0\n")
    (gold,) = read_gold(from_zero, [(1, 1)], index_base=0)
    assert gold is not None and gold.sure == {(0, 0)}


def test_words_that_count_from_one_are_not_read_off_by_one(tmp_path: Path) -> None:
    path = write(tmp_path / "gold", "1-1 2p3 2-2\n\n1p1\n")
    lengths = [(2, 3), (1, 1), (1, 1)]
    assert read_gold(path, lengths) == read_gold(path, lengths, index_base=1)


ONE_LINK = GoldAlignment(frozenset({(0, 0)}), frozenset({(0, 0)}))


@pytest.mark.parametrize(
    "numbers",
    [(1, 2, 3), (0, 1, 2), (3, 1, 2), (2, 0, 1), (1, 2, 4), (0, 2, 3), (10, 12, 11)],
)
def test_sentences_are_matched_by_their_numbers_or_by_their_order(
    tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    """A sentence of its own length each, so that a link tells whose it is."""
    in_order = numbers if min(numbers) > 1 else sorted(numbers)
    lines = [f"{number} {in_order.index(number) + 1} 1 S\n" for number in numbers]
    gold = read_gold(write(tmp_path / "gold", "".join(lines)), [(1, 1), (2, 1), (3, 1)])
    assert [one and one.sure for one in gold] == [{(0, 0)}, {(1, 0)}, {(2, 0)}]


def test_a_pair_without_text_needs_no_gold(tmp_path: Path) -> None:
    lengths = [(1, 1), (0, 1), (1, 1)]
    for numbers in ("13", "57"):
        text = "".join(f"{number} 1 1 S\n" for number in numbers)
        assert read_gold(write(tmp_path / "gold", text), lengths) == [ONE_LINK, None, ONE_LINK]


def test_links_that_cannot_be_found_count_as_missed(tmp_path: Path) -> None:
    """As in XLM-Align's aligner, whose sets have a link to -99 and a pair without text."""
    path = write(tmp_path / "gold", "0 1 1 S\n0 2 -99 P\n0 -99 1 S\n2 1 1 S\n4 1 2 P\n")
    gold = read_gold(path, [(2, 1), (1, 0), (2, 2)])
    assert gold == [
        GoldAlignment(frozenset({(0, 0), (-100, 0)}), frozenset({(0, 0), (1, -100), (-100, 0)})),
        ONE_LINK,
        GoldAlignment(frozenset(), frozenset({(0, 1)})),
    ]
    counts = alignment_scores([(0, 0)], gold[0].sure, gold[0].possible)
    assert counts == AlignmentCounts(predicted=1, sure=2, in_sure=1, in_possible=1)


@pytest.mark.parametrize(
    ("text", "base", "message"),
    [
        ("0-0\n0-3\n", None, "gold line 2: target word 3 does not exist; the sentence has 3, counted from 0"),
        ("0-0\n2-0\n", None, "gold line 2: source word 2 does not exist; the sentence has 2"),
        ("1-1\n0-1\n", 1, "gold line 2: source word 0 does not exist; the sentence has 2, counted from 1"),
        ("1 1 1 S\n2 2 4 P\n", None, "gold line 2: target word 4 does not exist; the sentence has 3"),
        ("3 1 1 S\n", None, "gold: sentence 3 does not exist; the texts have 2. Nor can the 1 sentences of"),
        ("1 1 1\n2 1 1\n3 1 1\n", None, "gold: sentence 3 does not exist"),
        ("1 0 1 S\n2 1 1 S\n", None, "gold line 1: source word 0 does not exist; .* counted from 1"),
        ("\n1-1\n", None, "no link says whether words count from 0 or from 1; give --gold_index_base"),
        ("1-1\n2-4\n", None, "gold line 2: target word 4 does not exist"),
        ("1 1 1 S\n2 1 1 X\n", None, "gold line 2: expected `sentence source target`, then S, P or nothing"),
        ("1 1 1 S\n2 1\n", None, "gold line 2: expected `sentence source target`"),
        ("0-0\n0-0 1:1\n", None, "gold line 2: expected links such as 1-2 .* or 1p2 .*, found '1:1'"),
        ("0-0\n", None, "gold has 1 lines of links for 2 sentences"),
    ],
)  # fmt: skip
def test_bad_gold_is_told_with_its_line(tmp_path: Path, text: str, base: int | None, message: str) -> None:
    path = write(tmp_path / "gold", text)
    with pytest.raises(UsageError, match=message):
        read_gold(path, [(1, 2), (2, 3)], index_base=base)


# ---------------------------------------------------------------------------- command


def texts(folder: Path) -> list[str]:
    """Flags of two files of sentences."""
    lines = [" ".join(words) for words in SOURCES], [" ".join(words) for words in TARGETS]
    source, target = (
        write(folder / name, "".join(f"{line}\n" for line in side))
        for name, side in zip(("test.xx", "test.yy"), lines, strict=True)
    )
    return ["--source_file", str(source), "--target_file", str(target)]


def test_links_are_written_and_are_their_own_gold(
    folder: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model_name_or_path", str(folder), *texts(tmp_path)]
    assert run_main(align_words_command, [*common, "--output_dir", str(tmp_path / "links")]) == 0
    (links,) = (tmp_path / "links").iterdir()  # without gold there is no result
    assert links.name == "word_alignment-xx-yy.txt"
    expected = WordAligner(encoder, layers=[2]).align(SOURCES, TARGETS)  # two thirds of three layers
    assert links.read_text().split("\n") == [
        *(" ".join(f"{i}-{j}" for i, j in sorted(found)) for (found,) in expected),
        "",
    ]

    scored = [*common, "--gold_file", str(links), "--output_dir", str(tmp_path / "scored")]
    capsys.readouterr()
    assert run_main(align_words_command, scored) == 0
    assert (tmp_path / "scored" / links.name).read_text() == links.read_text()
    result = read_result(tmp_path / "scored" / "word_alignment_results.json")
    assert result["task"] == "word_alignment" and result["metric"] == "aer"
    assert result["settings"] == {
        "method": "ot", "context": "pair", "layer": 2, "sinkhorn_iter": 2, "bf16": False,
    }  # fmt: skip
    assert result["command"] == ["infoxlm", "align-words", *scored]
    rate = result["scores"]["xx-yy"]["aer"]
    assert (rate["value"], rate["low"], rate["count"]) == (0, 0, 5) and 40 < rate["high"] < 60
    layers = result["details"]["layers"]["xx-yy"]
    assert list(layers) == ["0", "1", "2", "3"] and layers["2"] == result["scores"]["xx-yy"]
    for layer in (0, 1, 3):
        counts = [
            alignment_scores(found[layer], found[2], ())
            for found in WordAligner(encoder).align(SOURCES, TARGETS)
        ]
        rates = alignment_rates(np.sum(counts, axis=0))
        for metric, rate in rates.items():
            assert layers[str(layer)][metric]["value"] == pytest.approx(float(rate))
    assert layers["0"]["aer"]["value"] > 0
    assert "*2 │  0.0 │     100.0" in capsys.readouterr().out


def test_joined_file_gives_the_same_links(folder: Path, tmp_path: Path) -> None:
    pairs = [f"{' '.join(a)} ||| {' '.join(b)}\n" for a, b in zip(SOURCES, TARGETS, strict=True)]
    joined = write(tmp_path / "joined.txt", "".join(pairs))
    common = ["--model_name_or_path", str(folder), "--method", "itermax", "--layer", "1"]
    align_words_command([*common, *texts(tmp_path), "--output_dir", str(tmp_path / "two")])
    one = [*common, "--pairs_file", str(joined), "--pair", "xx-yy", "--output_dir", str(tmp_path / "one")]
    align_words_command(one)
    name = "word_alignment-xx-yy.txt"
    assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


def test_folder_of_test_sets_gives_a_score_for_each_pair(folder: Path, tmp_path: Path) -> None:
    sets = tmp_path / "alignment-test-sets"
    for name, gold in (("de-en", "1 1 1 S\n"), ("en-fr", "1 1 1 S\n1 2 1 P\n4 1 1 S\n")):
        texts(sets / name)
        for old, new in zip(("xx", "yy"), name.split("-"), strict=True):
            (sets / name / f"test.{old}").rename(sets / name / f"test.{new}")
        write(sets / name / "alignv2.txt", gold)
    argv = [
        "--model_name_or_path",
        str(folder),
        "--test_dir",
        str(sets),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    align_words_command(argv)
    result = read_result(tmp_path / "out" / "word_alignment_results.json")
    assert {name: rates["aer"]["count"] for name, rates in result["scores"].items()} == {
        "de-en": 1,
        "en-fr": 2,
    }
    assert result["dataset"]["name"] == "alignment-test-sets" and len(result["dataset"]["files"]) == 6
    assert result["details"]["sentences_without_gold"] == {"de-en": 4, "en-fr": 3}
    values = [rates["aer"]["value"] for rates in result["scores"].values()]
    assert result["summary"] == {"mean": pytest.approx(np.mean(values))}
    assert {path.name for path in (tmp_path / "out").glob("*.txt")} == {
        "word_alignment-de-en.txt", "word_alignment-en-fr.txt",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give the sentences one way"),
        (["--source_file", "{dir}/test.xx"], "give the sentences one way"),
        (["--pairs_file", "{dir}/test.xx", "--test_dir", "{dir}"], "give the sentences one way"),
        (["--pairs_file", "{dir}/missing"], "missing cannot be read: No such file"),
        (["--pairs_file", "{dir}/test.xx"], r"line 1: expected `source \|\|\| target`, found 1 parts"),
        (
            ["--source_file", "{dir}/test.xx", "--target_file", "{dir}/short.yy"],
            "5 lines but .*short.yy has 1",
        ),
        (["--pairs_file", "{dir}/empty"], "empty holds no sentence"),
        (["--pairs_file", "{dir}/binary"], "binary is not valid UTF-8 at byte 1"),
        (["--test_dir", "{dir}"], "holds no folder of a pair"),
        (["--test_dir", "{dir}/sets"], "de-en holds no gold; expected alignv2.txt or gold.txt"),
        (["{texts}", "--gold_file", "{dir}/bad-gold"], "bad-gold line 1: target word 7 does not exist"),
        (["{texts}", "--gold_file", "{dir}/no-gold"], "no-gold holds no link"),
        (["{texts}", "--layer", "9"], "layer must be in 0..3, found 9"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    both = texts(tmp_path)
    write(tmp_path / "short.yy", "w4\n")
    write(tmp_path / "empty", "")
    write(tmp_path / "binary", "a").write_bytes(b"a\xff\n")
    write(tmp_path / "bad-gold", "0-7\n\n\n\n\n")
    write(tmp_path / "no-gold", "\n\n\n\n\n")
    texts(tmp_path / "sets" / "de-en")
    argv = [text.format(dir=tmp_path, texts="") for text in flags if text != "{texts}"]
    argv = [*(both if "{texts}" in flags else []), *argv]
    argv += ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "out")]
    assert run_main(align_words_command, argv) == 2
    *_, error = capsys.readouterr().err.splitlines()  # below what the library says of loading
    assert re.fullmatch(f"error: .*{message}.*", error)
    assert not (tmp_path / "out").exists()


def test_results_are_not_replaced_unasked(folder: Path, tmp_path: Path) -> None:
    argv = ["--model_name_or_path", str(folder), *texts(tmp_path), "--output_dir", str(tmp_path / "out")]
    align_words_command(argv)
    with pytest.raises(UsageError, match="word_alignment-xx-yy.txt exists; give another --output_dir"):
        align_words_command(argv)
    align_words_command([*argv, "--overwrite_output_dir", "true", "--method", "argmax"])


def test_cut_pairs_are_warned_of(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "long.txt", f"{'w4 ' * 60}||| w5\nw6 ||| w7\n")
    argv = ["--model_name_or_path", str(folder), "--pairs_file", str(tmp_path / "long.txt")]
    with caplog.at_level(logging.WARNING):
        align_words_command([*argv, "--output_dir", str(tmp_path / "out")])
    assert "1 pairs are longer than the model's 40 tokens" in caplog.text


def test_result_is_plain_json(folder: Path, tmp_path: Path) -> None:
    gold = write(tmp_path / "gold", "1 1 1\n")
    argv = ["--model_name_or_path", str(folder), *texts(tmp_path), "--gold_file", str(gold)]
    align_words_command([*argv, "--output_dir", str(tmp_path / "out")])
    content = json.loads((tmp_path / "out" / "word_alignment_results.json").read_text())
    assert content["details"]["layers"]["xx-yy"]["0"]["aer"]["count"] == 1

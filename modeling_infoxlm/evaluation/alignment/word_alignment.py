"""Word alignment from the hidden states of any layer of any encoder: `infoxlm align-words`.

    infoxlm align-words --model_name_or_path xlm-roberta-base --source_file test.de --target_file test.en \
        --gold_file alignv2.txt --output_dir out

Three methods: `ot`, the optimal-transport aligner of XLM-Align (Chi et al., ACL 2021), which encodes a pair
as one sequence `<s> source </s> target </s>`; `argmax` and `itermax` of SimAlign (Jalili Sabet et al.,
Findings of EMNLP 2020), which encode each sentence by itself. `--context` overrides either.

A line is a sentence, its words are divided by blanks (not by U+00A0: gold files count words as GIZA does).
Each word is cut into sub-words by itself, and two words are aligned if any of their sub-words are.

Shapes: N pairs, K layers, m and n sub-words of a source and a target, D hidden.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.evaluation.batching import check_finite, padded_inputs, progress_bar, run_batches
from modeling_infoxlm.evaluation.encoders import (
    Encoder,
    EncoderArguments,
    load_encoder,
)
from modeling_infoxlm.evaluation.results import (
    DatasetRecord,
    Estimate,
    TaskResult,
    estimate_share,
    summarise,
    write_result,
)
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import write_text
from modeling_infoxlm.runs.process import configure_process

logger = logging.getLogger(__name__)

Method = Literal["ot", "argmax", "itermax"]
Context = Literal["pair", "single"]
Link = tuple[int, int]

TASK = "word_alignment"
METRICS = ("aer", "precision", "recall", "f1")
SINKHORN_ITERATIONS = 2  # of the released aligner
ITERMAX_ALPHA, ITERMAX_ROUNDS = 0.9, 2  # SimAlign's
_SMALLEST = 1e-6  # what XLM-Align puts in place of a similarity that is not positive
_CONTEXT: Mapping[Method, Context] = {"ot": "pair", "argmax": "single", "itermax": "single"}
# The states of all layers are held, so a batch is smaller than where one layer is asked for.
_CPU_TOKENS_PER_BATCH, _GPU_TOKENS_PER_BATCH = 2048, 16384
_GOLD_NAMES = ("alignv2.txt", "gold.txt")


# ---------------------------------------------------------------------------------------------------- scores


class AlignmentCounts(NamedTuple):
    """What a score of alignments is made of; counts of several sentences are added.

    Attributes:
        predicted: Links found.
        sure: Sure links of the gold.
        in_sure: Links found that are sure.
        in_possible: Links found that are possible; a sure link is possible too.
    """

    predicted: int
    sure: int
    in_sure: int
    in_possible: int


def alignment_scores(
    predicted: Iterable[Link], sure: Iterable[Link], possible: Iterable[Link]
) -> AlignmentCounts:
    """Compare the links of one sentence with the gold.

    Args:
        predicted: Links (source word, target word).
        sure: Links that an aligner must find.
        possible: Links that it may find, with or without the sure ones among them.
    """
    found, must = set(predicted), set(sure)
    may = must | set(possible)
    return AlignmentCounts(len(found), len(must), len(found & must), len(found & may))


def alignment_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Alignment error rate, precision, recall and F1, in percent (Och and Ney, 2003, section 5).

    Args:
        counts: Sums or means of `AlignmentCounts` over sentences, (..., 4).

    Returns:
        Each of `METRICS`, (...). A ratio of nothing to nothing is 0.
    """
    predicted, sure, in_sure, in_possible = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    precision, recall = _ratio(in_possible, predicted), _ratio(in_sure, sure)
    missed = predicted + sure - in_sure - in_possible
    rates = {
        "aer": _ratio(missed, predicted + sure),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
    }
    return {name: 100 * rate for name, rate in rates.items()}


def estimate_rates(counts: Sequence[AlignmentCounts]) -> dict[str, Estimate]:
    """Each of `METRICS` with its interval, by resampling sentences."""
    table = np.array(counts)

    def rate(metric: str, means: np.ndarray) -> np.ndarray:
        return alignment_rates(means)[metric]

    return {metric: estimate_share(table, partial(rate, metric)) for metric in METRICS}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


# --------------------------------------------------------------------------------------------------- methods


def sinkhorn(similarity: Tensor, *, iterations: int = SINKHORN_ITERATIONS) -> tuple[Tensor, Tensor]:
    """Scale similarities to a transport plan, by columns and rows in turn (XLM-Align, section 3.2).

    No exponential and no temperature. Similarities that are not positive become 1e-6, as in the training code
    (the released aligner means to do so, but writes to a copy).

    Args:
        similarity: Dot products, (..., m, n).
        iterations: Rounds.

    Returns:
        The plan after the last scaling of rows (they sum to 1), and before it (columns sum to 1).
    """
    rows_scaled = torch.where(similarity > 0, similarity, _SMALLEST)
    columns_scaled = rows_scaled
    for _ in range(iterations):
        columns_scaled = rows_scaled / rows_scaled.sum(dim=-2, keepdim=True)
        rows_scaled = columns_scaled / columns_scaled.sum(dim=-1, keepdim=True)
    return rows_scaled, columns_scaled


def transport_alignment(similarity: Tensor, *, iterations: int = SINKHORN_ITERATIONS) -> Tensor:
    """Sub-words that are each other's best in the transport plan, (..., m, n) of bool; see `sinkhorn`."""
    rows_scaled, columns_scaled = sinkhorn(similarity, iterations=iterations)
    return _highest(rows_scaled, dim=-1) & _highest(columns_scaled, dim=-2)


def argmax_alignment(similarity: Tensor) -> Tensor:
    """Sub-words that are each other's most similar, (..., m, n) of bool; the first one of equals."""
    return _highest(similarity, dim=-1) & _highest(similarity, dim=-2)


def itermax_alignment(similarity: Tensor, *, rounds: int = ITERMAX_ROUNDS) -> Tensor:
    """Mutual argmax, repeated for sub-words that have no partner yet (SimAlign, section 3.2).

    In later rounds a partner may be aligned already, at 0.9 of its similarity.

    Args:
        similarity: Not negative, (..., m, n).
        rounds: 1 is `argmax_alignment`.

    Returns:
        (..., m, n) of bool.
    """
    aligned = argmax_alignment(similarity)
    if min(similarity.shape[-2:]) <= 2:  # as in the released code
        return aligned
    for _ in range(rounds - 1):
        free_rows = ~aligned.any(dim=-1, keepdim=True)
        free_columns = ~aligned.any(dim=-2, keepdim=True)
        both_left = free_rows.any(dim=-2, keepdim=True) & free_columns.any(dim=-1, keepdim=True)
        weight = (ITERMAX_ALPHA * free_rows + ITERMAX_ALPHA * free_columns).clamp(max=1)
        aligned = aligned | argmax_alignment(similarity * weight) & (free_rows | free_columns) & both_left
    return aligned


def _highest(scores: Tensor, *, dim: int) -> Tensor:
    """Mark the highest score along a dimension, the first one of equals."""
    marked = torch.zeros_like(scores, dtype=torch.bool)
    return marked.scatter_(dim, scores.argmax(dim=dim, keepdim=True), True)


def _cosine(source: Tensor, target: Tensor) -> Tensor:
    return F.normalize(source, dim=-1) @ F.normalize(target, dim=-1).mT


def _align_states(source: Tensor, target: Tensor, method: Method, iterations: int) -> Tensor:
    """Align the states (K, m, D) and (K, n, D) of a pair, each layer by itself: (K, m, n) of bool."""
    if method == "ot":
        return transport_alignment(source @ target.mT, iterations=iterations)
    if method == "argmax":
        return argmax_alignment(_cosine(source, target))
    return itermax_alignment((_cosine(source, target) + 1) / 2)  # SimAlign's scale, 0..1


# ------------------------------------------------------------------------------------------------ sentences


class _SubWords(NamedTuple):
    """Sub-words of a sentence and the word that each belongs to."""

    ids: list[int]
    words: list[int]

    def cut(self, count: int) -> "_SubWords":
        return _SubWords(self.ids[:count], self.words[:count])


class _Pair(NamedTuple):
    source: _SubWords
    target: _SubWords

    def cut(self, context: Context, longest: int) -> "_Pair":
        """Leave out the ends that the model has no positions for; of a pair, the longer side gives way."""
        if context == "single":
            return _Pair(self.source.cut(longest - 2), self.target.cut(longest - 2))
        room = longest - 3
        kept = min(len(self.source.ids), max(room // 2, room - len(self.target.ids)))
        return _Pair(self.source.cut(kept), self.target.cut(room - kept))


class WordAligner:
    """Aligns the words of sentence pairs with an encoder.

    Args:
        encoder: Of any architecture.
        method: `"ot"`, `"argmax"` or `"itermax"`.
        layers: The K layers that are aligned, 0 for the embedding output; None for all.
        context: `"pair"` encodes `<s> source </s> target </s>`, `"single"` each sentence by itself; None is
            what the method was published with.
        iterations: Rounds of Sinkhorn scaling.

    Attributes:
        num_cut: Pairs so far that were longer than the model has positions for.

    Raises:
        UsageError: If the model does not have a layer.

    Example:
        >>> WordAligner(encoder, layers=[8]).align([["das", "Haus"]], [["the", "house"]])
        [[{(0, 0), (1, 1)}]]
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        method: Method = "ot",
        layers: Sequence[int] | None = None,
        context: Context | None = None,
        iterations: int = SINKHORN_ITERATIONS,
    ) -> None:
        asked = range(encoder.num_layers + 1) if layers is None else layers
        self.layers = [encoder.check_layer(layer) for layer in asked]
        self.encoder, self.method, self.iterations = encoder, method, iterations
        self.context: Context = context or _CONTEXT[method]
        self.num_cut = 0

    def align(
        self, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], *, progress: bool = False
    ) -> list[list[set[Link]]]:
        """Links (source word, target word), from 0, of each pair at each of the K layers.

        Args:
            sources: Words of N sentences.
            targets: Words of their translations.
            progress: Show a progress bar when it takes longer than two seconds.

        Raises:
            ValueError: If there is not one translation for each sentence.
        """
        if len(sources) != len(targets):
            raise ValueError(
                f"expected one translation for each of {len(sources):,} sentences, found {len(targets):,}."
            )
        pairs = self._read(sources, targets)
        links: list[list[set[Link]]] = [[set() for _ in self.layers] for _ in pairs]

        def run(members: np.ndarray) -> None:
            batch = [pairs[i] for i in members]
            for i, pair, (source, target) in zip(members, batch, self._states(batch), strict=True):
                for side, states in ((pair.source, source), (pair.target, target)):
                    self._check_finite(side, states)
                if pair.source.ids and pair.target.ids:
                    aligned = _align_states(source, target, self.method, self.iterations)
                    links[i] = _word_links(aligned, pair)

        model = self.encoder.model
        lengths = np.array([len(pair.source.ids) + len(pair.target.ids) + 4 for pair in pairs])
        most = _CPU_TOKENS_PER_BATCH if model.device.type == "cpu" else _GPU_TOKENS_PER_BATCH
        with progress_bar(len(pairs), "aligning", " pairs", show=progress) as bar:
            run_batches(model, lengths, run, bf16=self.encoder.bf16, tokens_per_batch=most, bar=bar)
        return links

    def _read(self, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> list[_Pair]:
        """Cut words into sub-words, and pairs at the model's length."""
        pieces = _pieces(self.encoder.tokenizer, (*sources, *targets))
        pairs = []
        for source, target in zip(sources, targets, strict=True):
            whole = _Pair(_sub_words(source, pieces), _sub_words(target, pieces))
            pairs.append(whole.cut(self.context, self.encoder.max_length))
            self.num_cut += pairs[-1] != whole
        return pairs

    def _check_finite(self, side: _SubWords, states: Tensor) -> None:
        tokenizer = self.encoder.tokenizer
        check_finite(
            states.flatten(1)[:, None], self.encoder.model, lambda _: repr(tokenizer.decode(side.ids))
        )

    def _states(self, pairs: Sequence[_Pair]) -> Iterator[tuple[Tensor, Tensor]]:
        """States (K, m, D) and (K, n, D) of each pair, special tokens left out."""
        encoder = self.encoder
        rows, places = _rows(pairs, self.context, encoder.tokenizer)
        batch = padded_inputs(PackedRows.from_lists(rows), encoder.model)
        hidden = encoder.model(**batch, output_hidden_states=True).hidden_states
        for (first, start, stop), (second, begin, end) in places:
            source = torch.stack([hidden[layer][first, start:stop] for layer in self.layers])
            target = torch.stack([hidden[layer][second, begin:end] for layer in self.layers])
            yield source.float(), target.float()


def _pieces(tokenizer: PreTrainedTokenizerBase, sentences: Iterable[Sequence[str]]) -> dict[str, list[int]]:
    """Ids of each distinct word, as it is cut when it stands alone."""
    words = sorted({word for sentence in sentences for word in sentence})
    if not words:
        return {}
    return dict(zip(words, tokenizer(words, add_special_tokens=False)["input_ids"], strict=True))


def _sub_words(sentence: Sequence[str], pieces: Mapping[str, list[int]]) -> _SubWords:
    cut = [(piece, position) for position, word in enumerate(sentence) for piece in pieces[word]]
    return _SubWords([piece for piece, _ in cut], [position for _, position in cut])


_Place = tuple[int, int, int]  # row, first sub-word, past the last one


def _rows(
    pairs: Sequence[_Pair], context: Context, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[list[int]], list[tuple[_Place, _Place]]]:
    """Rows of ids for the model, and where in them the sub-words of each pair stand."""
    first, last = _special_ids(tokenizer)
    rows: list[list[int]] = []
    places: list[tuple[_Place, _Place]] = []
    for (source, _), (target, _) in pairs:
        m, n, row = len(source), len(target), len(rows)
        if context == "pair":
            # One separator, as in the aligner and in TLM; the tokenizer of XLM-R would put two.
            rows.append([first, *source, last, *target, last])
            places.append(((row, 1, 1 + m), (row, 2 + m, 2 + m + n)))
        else:
            rows += [[first, *source, last], [first, *target, last]]
            places.append(((row, 1, 1 + m), (row + 1, 1, 1 + n)))
    return rows, places


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of the token that begins a sequence and of the one that ends a sentence."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise UsageError(
            "the tokenizer names no token that begins a sequence or none that ends a sentence "
            "(cls_token or bos_token, sep_token or eos_token); an encoder for sentences needs both."
        )
    return first, last


def _word_links(aligned: Tensor, pair: _Pair) -> list[set[Link]]:
    """Aligned sub-words (K, m, n) as links between the words that they belong to."""
    links: list[set[Link]] = [set() for _ in range(len(aligned))]
    for layer, i, j in aligned.nonzero().tolist():
        links[layer].add((pair.source.words[i], pair.target.words[j]))
    return links


# ----------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class GoldAlignment:
    """Links of one sentence that people drew, from 0; the sure ones are possible too."""

    sure: frozenset[Link]
    possible: frozenset[Link]


@dataclass(frozen=True)
class PairFiles:
    """Where the sentences of a language pair and their gold are.

    Attributes:
        name: Such as `de-en`.
        texts: Two files, line i of one translates line i of the other; or one of `source ||| target`.
        gold: None: align only.
    """

    name: str
    texts: tuple[Path, ...]
    gold: Path | None


def read_words(files: PairFiles) -> tuple[list[list[str]], list[list[str]]]:
    """Words of the sentences of a pair of languages.

    Raises:
        UsageError: If a file cannot be read, the two sides differ in length, or there is no sentence.
    """
    joined = len(files.texts) == 1
    sources, targets = _read_joined(files.texts[0]) if joined else map(_read_lines, files.texts)
    if len(sources) != len(targets):
        raise UsageError(
            f"{files.texts[0]} has {len(sources):,} lines but {files.texts[-1]} has {len(targets):,}; "
            "line i of each file must be a translation."
        )
    if not sources:
        raise UsageError(f"{files.texts[0]} holds no sentence.")
    return [_words(line) for line in sources], [_words(line) for line in targets]


def read_gold(
    path: Path, lengths: Sequence[tuple[int, int]], *, index_base: int | None = None
) -> list[GoldAlignment | None]:
    """Read a gold file of either usual form, told apart by its first line.

    * A line for each sentence: `1-1 2-3 4p5`, where `-` is sure and `p` possible; a number and a tab may come
      first.
    * A line for each link: `sentence source target`, then `S` (or nothing) or `P`. Where the gold has as many
      sentences as the texts, these come in order of first appearance whatever their numbers, as in the
      aligner of XLM-Align; see `_sentence_of`.

    A link that cannot be found, to a word below 0 or in a pair without text, counts as it does there.

    Args:
        path: The file.
        lengths: Words of source and target of each sentence, to check the links against.
        index_base: Number of the first word, 0 or 1; None is 1 in the second form, and what the links show in
            the first.

    Returns:
        The gold of each sentence; None where the second form has none (it was not annotated).

    Raises:
        UsageError: With file and line, if a line cannot be read, a link points outside of its sentence, or it
            cannot be told from where sentences or words are counted.
    """
    lines = _read_lines(path)
    first = next((line for line in lines if line.strip()), "")
    if _LINK_LINE.match(first):
        read = list(_parse_link_lines(path, lines))
        places = _sentence_of([one.sentence for one in read], lengths, path)
        base = 1 if index_base is None else index_base
    else:
        read = list(_parse_sentence_lines(path, lines, len(lengths)))
        places = {i: i for i in range(len(lengths))}
        base = _first_word(read, lengths, path) if index_base is None else index_base
    is_whole = len(places) == len(lengths)
    gold: dict[int, tuple[set[Link], set[Link]]] = {}
    for line in read:
        place = places[line.sentence]
        sure, possible = gold.setdefault(place, (set(), set()))
        for source, target, is_sure in line.links:
            if not (is_whole and 0 in lengths[place]):
                _check_link((source, target), lengths[place], base, f"{path} line {line.number:,}")
            link = (source - base, target - base)
            possible.add(link)
            if is_sure:
                sure.add(link)
    return [GoldAlignment(*map(frozenset, gold[i])) if i in gold else None for i in range(len(lengths))]


class _GoldLine(NamedTuple):
    """A line of a gold file: its number, that of its sentence, and links with whether they are sure."""

    number: int
    sentence: int
    links: list[tuple[int, int, bool]]


_LINK = re.compile(r"([0-9]+)([-p])([0-9]+)")
_LINK_LINE = re.compile(r"\s*([0-9]+)\s+(-?[0-9]+)\s+(-?[0-9]+)(?:\s|$)")


def _parse_sentence_lines(path: Path, lines: Sequence[str], num_sentences: int) -> Iterator[_GoldLine]:
    if len(lines) != num_sentences:
        raise UsageError(
            f"{path} has {len(lines):,} lines of links for {num_sentences:,} sentences; "
            "a sentence without any needs an empty line."
        )
    for number, line in enumerate(lines, 1):
        links = []
        for text in line.rpartition("\t")[2].split():
            match = _LINK.fullmatch(text)
            if not match:
                raise UsageError(
                    f"{path} line {number:,}: expected links such as 1-2 (sure) or 1p2 (possible), "
                    f"found {text!r}."
                )
            links.append((int(match[1]), int(match[3]), match[2] == "-"))
        yield _GoldLine(number, number - 1, links)


def _first_word(read: Sequence[_GoldLine], lengths: Sequence[tuple[int, int]], path: Path) -> int:
    """Number of the first word in links that do not say it: read off by one, most of them would still fit."""
    ends = [
        (index, length)
        for line in read
        for link in line.links
        for index, length in zip(link[:2], lengths[line.sentence], strict=True)
    ]
    if not ends or any(index == 0 for index, _ in ends):
        return 0
    if any(index == length for index, length in ends):
        logger.warning("%s: words count from 1, as no link is to word 0 and some to the last one.", path)
        return 1
    raise UsageError(
        f"{path}: no link says whether words count from 0 or from 1; give --gold_index_base 0, or 1."
    )


def _parse_link_lines(path: Path, lines: Sequence[str]) -> Iterator[_GoldLine]:
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        match, kind = _LINK_LINE.match(line), fields[3:]
        if not match or kind not in ([], ["S"], ["P"]):
            raise UsageError(
                f"{path} line {number:,}: expected `sentence source target`, then S, P or nothing, "
                f"found {line.strip()!r}."
            )
        sentence, source, target = map(int, match.groups())
        yield _GoldLine(number, sentence, [(source, target, kind != ["P"])])


def _sentence_of(sentences: Sequence[int], lengths: Sequence[tuple[int, int]], path: Path) -> dict[int, int]:
    """The line of the texts, from 0, that each number of a sentence in the gold stands for.

    Numbers from 1, or from 0 where there is a 0, are those of the lines; some may be left out. Others can
    only be known by their order, if there is one for each pair, or for each pair with text.

    Raises:
        UsageError: If neither holds.
    """
    numbers = list(dict.fromkeys(sentences))
    begin = int(0 not in numbers)
    if max(numbers) < len(lengths) + begin:
        if len(numbers) < len(lengths):
            message = "%s has gold for %s of %s sentences, by their numbers, counted from %d."
            logger.warning(message, path, f"{len(numbers):,}", f"{len(lengths):,}", begin)
        return {number: number - begin for number in numbers}
    with_text = [place for place, pair in enumerate(lengths) if min(pair)]
    places = with_text if len(numbers) == len(with_text) else range(len(lengths))
    if len(numbers) != len(places):
        raise UsageError(
            f"{path}: sentence {max(numbers)} does not exist; the texts have {len(lengths):,}. Nor can the "
            f"{len(numbers):,} sentences of the gold be matched by their order; are these its texts?"
        )
    logger.warning("%s: the numbers of its sentences are no line numbers; matched by their order.", path)
    return dict(zip(numbers, places, strict=True))


def _check_link(link: Link, lengths: tuple[int, int], base: int, place: str) -> None:
    """Refuse a link past the end of a sentence, a sign of other texts; one below 0 only means "nowhere"."""
    for index, length, side in zip(link, lengths, ("source", "target"), strict=True):
        if not base <= index < length + base and index >= 0:
            raise UsageError(
                f"{place}: {side} word {index} does not exist; the sentence has {length}, counted "
                f"from {base}. --gold_index_base says from where; or are source and target swapped?"
            )


def _read_joined(path: Path) -> tuple[list[str], list[str]]:
    """Both sides of a file of `source ||| target`."""
    sources, targets = [], []
    for number, line in enumerate(_read_lines(path), 1):
        sides = f" {line} ".split(" ||| ")
        if len(sides) != 2:
            raise UsageError(
                f"{path} line {number:,}: expected `source ||| target`, found {len(sides)} parts."
            )
        sources.append(sides[0])
        targets.append(sides[1])
    return sources, targets


def _read_lines(path: Path) -> list[str]:
    """Lines of a text file; only LF and CRLF end one, so U+2028 and U+0085 stay inside their sentence."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not valid UTF-8 at byte {error.start:,}.") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _words(line: str) -> list[str]:
    return [word for word in re.split("[ \t]", line) if word]


# --------------------------------------------------------------------------------------------------- command


@dataclass
class AlignWordsArguments:
    """What is aligned, how, and where the links go."""

    _argument_group_name = "word alignment"

    source_file: str | None = field(
        default=None, metadata={"help": "Sentences, one a line, words divided by blanks."}
    )
    target_file: str | None = field(default=None, metadata={"help": "Their translations, line by line."})
    pairs_file: str | None = field(
        default=None, metadata={"help": "Instead of both: one file of `source ||| target` lines."}
    )
    gold_file: str | None = field(
        default=None,
        metadata={
            "help": "Links drawn by people: `1-1 2-3 4p5` for each sentence (p: possible), or a line "
            "`sentence source target S|P` for each link. Unset: align only."
        },
    )
    test_dir: str | None = field(
        default=None,
        metadata={
            "help": "Instead of all of these: a folder with a folder for each pair, xx-yy, that holds "
            "test.xx, test.yy and alignv2.txt or gold.txt (the layout of XLM-Align's test sets)."
        },
    )
    gold_index_base: Literal["0", "1"] | None = field(
        default=None,
        metadata={
            "help": "Number of the first word in the gold. Unset: 1 in the second form, told by the links in "
            "the first."
        },
    )
    pair: str | None = field(
        default=None,
        metadata={"help": "Name of the language pair, such as de-en. Unset: from the names of the files."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Name of the test set in the result. Unset: the folder's name."},
    )
    method: Method = field(
        default="ot",
        metadata={
            "help": "ot: optimal transport (XLM-Align); argmax: mutual argmax of cosines, itermax: repeated "
            "for words left over (both SimAlign)."
        },
    )
    context: Context | None = field(
        default=None,
        metadata={
            "help": "Encode both sentences as one sequence, or each alone. Unset: pair for ot, else single."
        },
    )
    layer: int | None = field(
        default=None,
        metadata={
            "help": "Layer whose links are written and whose score heads the result; 0 is the embedding "
            "output. Unset: two thirds up, 8 of 12."
        },
    )
    sinkhorn_iter: int = field(
        default=SINKHORN_ITERATIONS, metadata={"help": "Rounds of scaling in the method ot."}
    )
    output_dir: str = field(
        default="word_alignment", metadata={"help": "Folder of the links and the result."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the links and results that are in output_dir."}
    )

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have."""
        if self.sinkhorn_iter < 0:
            raise ValueError(f"sinkhorn_iter must be 0 or more, found {self.sinkhorn_iter}.")

    def pair_files(self) -> list[PairFiles]:
        """The files of each pair.

        Raises:
            UsageError: If the flags name no text or contradict each other.
        """
        one, two = self.pairs_file is not None, bool(self.source_file and self.target_file)
        if [one, two, self.test_dir is not None].count(True) != 1:
            raise UsageError(
                "give the sentences one way: --source_file and --target_file, --pairs_file, or --test_dir."
            )
        if self.test_dir is not None:
            return _find_pairs(Path(self.test_dir))
        texts = tuple(Path(name) for name in (self.pairs_file, self.source_file, self.target_file) if name)
        name = self.pair or "-".join(path.suffix[1:] or path.stem for path in texts)
        return [PairFiles(name, texts, Path(self.gold_file) if self.gold_file else None)]

    def check_output(self) -> None:
        """Refuse to replace links or a result unless asked to, before anything is computed.

        Raises:
            UsageError: With the name of the first such file.
        """
        found = sorted(Path(self.output_dir).glob(f"{TASK}[-_]*"))
        if found and not self.overwrite_output_dir:
            raise UsageError(f"{found[0]} exists; give another --output_dir, or --overwrite_output_dir true.")

    def data_name(self) -> str:
        """What the result calls the test set."""
        folder = Path(self.test_dir or self.gold_file or ".").resolve()
        return self.dataset_name or (folder.name if self.test_dir else folder.parent.name)


def _find_pairs(folder: Path) -> list[PairFiles]:
    found = []
    for inner in sorted(path for path in folder.glob("*-*") if path.is_dir()):
        texts = tuple(inner / f"test.{language}" for language in inner.name.split("-", 1))
        gold = next((inner / name for name in _GOLD_NAMES if (inner / name).is_file()), None)
        if gold is None:
            raise UsageError(f"{inner} holds no gold; expected {' or '.join(_GOLD_NAMES)} in it.")
        found.append(PairFiles(inner.name, texts, gold))
    if not found:
        raise UsageError(f"{folder} holds no folder of a pair, such as de-en.")
    return found


def align_words_command(argv: list[str]) -> None:
    """Align the words of translations and compare with gold alignments: `infoxlm align-words`."""
    encoder_arguments, arguments = parse_args_with_config(
        (EncoderArguments, AlignWordsArguments), argv, program="infoxlm align-words", about=__doc__
    )
    arguments.check_output()
    configure_process()
    work = [_read_pair(files, arguments.gold_index_base) for files in arguments.pair_files()]
    has_gold = any(pair.gold for pair in work)
    encoder = load_encoder(encoder_arguments)
    layer = encoder.check_layer(
        round(encoder.num_layers * 2 / 3) if arguments.layer is None else arguments.layer
    )
    aligner = WordAligner(
        encoder,
        method=arguments.method,
        layers=None if has_gold else [layer],  # without gold nothing is asked of the others
        context=arguments.context,
        iterations=arguments.sinkhorn_iter,
    )
    links = [aligner.align(pair.sources, pair.targets, progress=True) for pair in work]
    if aligner.num_cut:
        logger.warning(
            "%d pairs are longer than the model's %d tokens; the words past them stay unaligned.",
            aligner.num_cut,
            encoder.max_length,
        )
    output_dir = Path(arguments.output_dir)
    for pair, found in zip(work, links, strict=True):
        path = output_dir / f"{TASK}-{pair.files.name}.txt"
        write_links(path, [by_layer[aligner.layers.index(layer)] for by_layer in found])
        print(f"{path}: links of {len(found):,} sentences at layer {layer}.")
    if has_gold:
        result = _score(work, links, aligner, layer=layer, dataset_name=arguments.data_name())
        print_layers(result)
        print(write_result(output_dir, result, command=["infoxlm", "align-words", *argv]))


@dataclass(frozen=True)
class _PairData:
    """What the files of a language pair hold."""

    files: PairFiles
    sources: list[list[str]]
    targets: list[list[str]]
    gold: list[GoldAlignment | None] | None


def _read_pair(files: PairFiles, index_base: str | None) -> _PairData:
    sources, targets = read_words(files)
    if files.gold is None:
        return _PairData(files, sources, targets, None)
    lengths = [(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
    gold = read_gold(files.gold, lengths, index_base=None if index_base is None else int(index_base))
    if not any(one.possible for one in gold if one is not None):
        raise UsageError(f"{files.gold} holds no link.")
    return _PairData(files, sources, targets, gold)


def write_links(path: Path, links: Sequence[set[Link]]) -> None:
    """Write links as `0-0 1-2`, a line for each sentence (Pharaoh's format), whole or not at all."""
    lines = (" ".join(f"{source}-{target}" for source, target in sorted(found)) for found in links)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _score(
    work: Sequence[_PairData],
    links: Sequence[list[list[set[Link]]]],
    aligner: WordAligner,
    *,
    layer: int,
    dataset_name: str,
) -> TaskResult:
    """Compare the links of every layer with the gold of every pair."""
    layers = {
        pair.files.name: {
            str(number): estimate_rates(_count(pair, [by_layer[k] for by_layer in found]))
            for k, number in enumerate(aligner.layers)
        }
        for pair, found in zip(work, links, strict=True)
    }
    scores = {name: by_layer[str(layer)] for name, by_layer in layers.items()}
    paths = [path for pair in work for path in (*pair.files.texts, pair.files.gold) if path is not None]
    return TaskResult(
        task=TASK,
        metric="aer",
        unit="percent",
        dataset=DatasetRecord.of_files(dataset_name, paths),
        model=aligner.encoder.record,
        settings={
            "method": aligner.method,
            "context": aligner.context,
            "layer": layer,
            "sinkhorn_iter": aligner.iterations if aligner.method == "ot" else None,
            "bf16": aligner.encoder.bf16,
        },
        scores=scores,
        summary=summarise({name: rates["aer"].value for name, rates in scores.items()}),
        details={
            "layers": layers,
            "sentences_without_gold": {pair.files.name: (pair.gold or []).count(None) for pair in work},
            "pairs_cut": aligner.num_cut,
        },
    )


def _count(pair: _PairData, links: Sequence[set[Link]]) -> list[AlignmentCounts]:
    """Counts of each sentence that has a gold."""
    return [
        alignment_scores(found, gold.sure, gold.possible)
        for found, gold in zip(links, pair.gold or [], strict=True)
        if gold is not None
    ]


def print_layers(result: TaskResult, console: Console | None = None) -> None:
    """Print the scores of every layer, a table for each pair."""
    for name, by_layer in result.details["layers"].items():
        table = Table(title=f"{name}: {result.settings['method']}, percent", title_justify="left")
        for heading in ("layer", *METRICS):
            table.add_column(heading, justify="right")
        for layer, rates in by_layer.items():
            mark = "*" if layer == str(result.settings["layer"]) else ""
            table.add_row(mark + layer, *(f"{rates[metric].value:.1f}" for metric in METRICS))
        (console or Console(width=120)).print(table)

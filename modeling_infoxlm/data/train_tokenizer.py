"""Train a Unigram tokenizer in XLM-R's layout, for models that start from scratch.

SentencePiece does the training, as it did for XLM-R. The trainer of the `tokenizers` library was tried first:
it took 3.5 times as long, gave other scores on every run, and transformers forgets its normaliser when
XLMRobertaTokenizer loads the folder, whereas SentencePiece's character map is kept.
"""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm
from transformers import XLMRobertaTokenizer

from modeling_infoxlm.data.readers import SkipBadLines, read_rows, warn_of_extra_columns
from modeling_infoxlm.data.sources import Source
from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.runs.files import give_name, make_folder, own_name, writing

logger = logging.getLogger(__name__)

# XLM-R's first ids; <mask> is appended as the last one.
_SPECIAL_PIECES = ("<s>", "<pad>", "</s>", "<unk>")
_MASK_PIECE = "<mask>"
_MOST_BYTES = 4192  # longer lines are left out, as SentencePiece does by default


def train_tokenizer(
    sources: Sequence[Source],
    output_dir: str | Path,
    *,
    vocab_size: int,
    max_length: int = 512,
    sampling_alpha: float = 0.3,
    max_sentences: int = 100_000,
    bitext_columns: tuple[int, int] | None = None,
    seed: int = 0,
) -> XLMRobertaTokenizer:
    """Train a tokenizer on the sentences of all sources, both sides of pairs included, and save it.

    The same text, settings and seed give the same tokenizer. 100,000 short lines take about 8 s on one core.

    Args:
        sources: From `parse_bitext_sources` and `parse_mono_sources`.
        output_dir: Folder that `AutoTokenizer` and `XLMRobertaTokenizer` load afterwards.
        vocab_size: Number of ids, special tokens included.
        max_length: `model_max_length` of the tokenizer.
        sampling_alpha: Language l gets a share of the lines proportional to (its distinct lines) ** alpha;
            0.3 is the exponent that XLM-R sampled languages with (arXiv 1911.02116, section 3.1).
        max_sentences: Most distinct lines to train on.
        bitext_columns: 0-based TSV columns of source and target; None takes the last two.
        seed: Another seed takes other lines.

    Returns:
        The tokenizer.

    Raises:
        DataError: If there is no text, too little or too varied text for this vocabulary size, or a file in
            the place of the folder.
    """
    make_folder(Path(output_dir).parent)  # before the work, not after it
    if Path(output_dir).exists():
        make_folder(Path(output_dir))
    warn_of_extra_columns(sources, bitext_columns)
    samples = _collect(sources, bitext_columns, max_sentences=max_sentences, seed=seed)
    sentences = _balanced(samples, sampling_alpha=sampling_alpha, max_sentences=max_sentences)
    if not sentences:
        raise DataError("no text to train a tokenizer on; all lines are empty.")
    model = _train_unigram(sentences, num_pieces=vocab_size - 1)  # one id is kept for <mask>
    tokenizer = _as_xlm_roberta(model, max_length)
    if len(tokenizer) < vocab_size:
        logger.warning("the text gives only %d of the %d tokens asked for", len(tokenizer), vocab_size)
    with writing(output_dir):
        _save(tokenizer, Path(output_dir))
    return tokenizer


def _save(tokenizer: XLMRobertaTokenizer, folder: Path) -> None:
    """Save beside the folder first: a kill or a full disk leaves no half tokenizer in it."""
    partial = own_name(folder)
    try:
        tokenizer.save_pretrained(partial)
        if not folder.exists():
            give_name(partial, folder)
            return
        for path in partial.iterdir():  # beside files of somebody else, over those of an earlier one
            give_name(path, folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# ------------------------------------------------------------------------------------------------- the sample


class _Sample:
    """A uniform sample of the distinct lines of a language, whatever their order: those of smallest hash."""

    def __init__(self, limit: int, salt: bytes) -> None:
        self._limit = limit
        self._salt = salt
        self._lines: dict[int, str] = {}

    def add(self, line: str) -> None:
        digest = hashlib.blake2b(
            line.encode("utf-8", "surrogatepass"), digest_size=8, salt=self._salt
        ).digest()
        self._lines[int.from_bytes(digest, "little")] = line
        if len(self._lines) > 2 * self._limit:
            self._lines = dict(sorted(self._lines.items())[: self._limit])

    def lines(self) -> list[str]:
        return [line for _, line in sorted(self._lines.items())[: self._limit]]

    def estimated_size(self) -> float:
        """Number of distinct lines seen: exact up to the limit, then from how densely their hashes lie."""
        hashes = sorted(self._lines)[: self._limit]
        if len(hashes) < self._limit:
            return float(len(hashes))
        return self._limit * 2.0**64 / hashes[-1]


def _collect(
    sources: Iterable[Source], columns: tuple[int, int] | None, *, max_sentences: int, seed: int
) -> dict[str, _Sample]:
    # A few lines that cannot be read do not matter here; `prepare` is where they are refused or counted.
    rows = (
        (source, row)
        for source in sources
        for row in read_rows(source, columns=columns, on_bad_line=SkipBadLines())
    )
    texts = (item for source, row in rows for item in zip(source.languages, row, strict=True))
    samples: dict[str, _Sample] = {}
    for language, text in tqdm(texts, "reading text", unit=" lines", delay=2):
        line = text.strip()
        if line and len(line.encode("utf-8", "surrogatepass")) <= _MOST_BYTES:
            if language not in samples:
                samples[language] = _Sample(max_sentences, seed.to_bytes(16, "little"))
            samples[language].add(line)
    return samples


def _balanced(samples: Mapping[str, _Sample], *, sampling_alpha: float, max_sentences: int) -> list[str]:
    """Lines of all languages, in shares proportional to (number of distinct lines) ** alpha."""
    weights = {language: sample.estimated_size() ** sampling_alpha for language, sample in samples.items()}
    total = sum(weights.values())
    chosen: list[str] = []
    for language in sorted(samples):
        chosen += samples[language].lines()[: max(1, round(max_sentences * weights[language] / total))]
    return chosen


# ----------------------------------------------------------------------------------------------- the training


def _train_unigram(sentences: Sequence[str], *, num_pieces: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=num_pieces,
            hard_vocab_limit=False,  # a small corpus gives fewer pieces instead of none
            character_coverage=0.9995,  # as for XLM-R
            max_sentence_length=_MOST_BYTES,
            shuffle_input_sentence=False,
            num_threads=1,  # with more, sums in another order would give other scores
            minloglevel=2,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"a tokenizer of {num_pieces + 1:,} tokens cannot be trained on this text: {reason}"
        ) from None
    return model.getvalue()


def _as_xlm_roberta(model: bytes, max_length: int) -> XLMRobertaTokenizer:
    from sentencepiece import sentencepiece_model_pb2

    # The class is made at run time, where no type checker sees it.
    content = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    pieces = [(piece.piece, piece.score) for piece in content.pieces[len(_SPECIAL_PIECES) :]]
    charsmap = content.normalizer_spec.precompiled_charsmap  # NFKC and more, compiled
    return XLMRobertaTokenizer(
        vocab=[*((piece, 0.0) for piece in _SPECIAL_PIECES), *pieces, (_MASK_PIECE, 0.0)],
        _spm_precompiled_charsmap=charsmap,  # bytes, whatever it says
        model_max_length=max_length,
    )

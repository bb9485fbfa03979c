"""A synthetic prepared corpus with the lengths of real text, so that a benchmark needs no download.

Ids are uniform: the time of a step hangs on lengths and shapes alone. The real `JointDataset` reads it.
"""

from pathlib import Path

import numpy as np

from modeling_infoxlm.data.shards import Corpus, PairStore, SpecialTokens, TokenStore, TokenStoreWriter

SPECIAL_IDS = 4  # <s>, <pad>, </s>, <unk> come first, as in XLM-R; <mask> is the last id
MEDIAN_SENTENCE = 27  # tokens of a sentence: with the spread below 32 on average, as in web bitext
SENTENCE_SPREAD = 0.55  # standard deviation of the logarithm of the length
SHORTEST_BLOCK = 0.9  # sentences are not split, so that MLM blocks are 90-100 % full


def special_tokens(vocab_size: int) -> SpecialTokens:
    """Special tokens laid out as XLM-R's."""
    mask = vocab_size - 1
    return SpecialTokens(
        bos=0, pad=1, eos=2, unk=3, mask=mask, vocab_size=vocab_size, all_ids=(0, 1, 2, 3, mask)
    )


def synthetic_corpus(
    folder: Path, *, vocab_size: int, max_length: int, num_pairs: int, num_languages: int = 1, seed: int = 0
) -> Corpus:
    """Write shards of MLM blocks and of sentence pairs and open them.

    Args:
        folder: Where the shards go.
        vocab_size: Ids, special ones included.
        max_length: Longest MLM block; a side of a pair has at most half of it.
        num_pairs: Pairs of each language pair; MLM blocks of each language are a quarter as many.
        num_languages: Languages with MLM text, and language pairs.
        seed: Of lengths and ids.
    """
    rng = np.random.default_rng(seed)
    longest_side = (max_length - 3) // 2
    mono: dict[str, TokenStore] = {}
    bitext: dict[str, PairStore] = {}
    for number in range(num_languages):
        language = f"x{number}"
        blocks = rng.integers(int(SHORTEST_BLOCK * max_length), max_length + 1, max(1, num_pairs // 4))
        mono[language] = _write(folder / "mono" / language, blocks, vocab_size, rng)
        source, target = (
            _write(
                folder / f"{language}.{side}",
                _sentence_lengths(rng, num_pairs, longest_side),
                vocab_size,
                rng,
            )
            for side in ("source", "target")
        )
        bitext[f"en-{language}"] = PairStore(source, target, "en", language)
    return Corpus(
        folder=folder,
        manifest={},
        special=special_tokens(vocab_size),
        max_length=max_length,
        mono=mono,
        bitext=bitext,
        heldout={},
    )


def _sentence_lengths(rng: np.random.Generator, count: int, longest: int) -> np.ndarray:
    lengths = MEDIAN_SENTENCE * np.exp(SENTENCE_SPREAD * rng.standard_normal(count))
    return lengths.astype(np.int64).clip(3, longest)


def _write(prefix: Path, lengths: np.ndarray, vocab_size: int, rng: np.random.Generator) -> TokenStore:
    with TokenStoreWriter(prefix) as writer:
        for length in lengths.tolist():
            writer.append(rng.integers(SPECIAL_IDS, vocab_size - 1, length))
    return TokenStore([prefix])

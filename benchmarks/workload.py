"""What is run: the model, batches and corpus of a benchmark, so that none needs a download.

Ids of the synthetic corpus are uniform: the time of a step hangs on lengths and shapes alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.data.batches import JointDataset
from modeling_infoxlm.data.ragged import SpecialTokens
from modeling_infoxlm.data.shards import Corpus, PairStore, TokenStore, TokenStoreWriter
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.momentum import MomentumEncoder
from modeling_infoxlm.training.arguments import PretrainingArguments

# Layers, width, heads, feed-forward width.
GEOMETRIES = {
    "tiny": (2, 32, 2, 64),
    "demo": (4, 256, 4, 1024),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}
SPECIAL_IDS = 4  # <s>, <pad>, </s>, <unk> come first, as in XLM-R; <mask> is the last id
MEDIAN_SENTENCE = 27  # tokens of a sentence: with the spread below 32 on average, as in web bitext
SENTENCE_SPREAD = 0.55  # standard deviation of the logarithm of the length
SHORTEST_BLOCK = 0.9  # sentences are not split, so that MLM blocks are 90-100 % full


def shape(geometry: str) -> dict[str, int]:
    """Fields of a configuration."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return dict(zip(names, GEOMETRIES[geometry], strict=True), pad_token_id=1)


@dataclass(frozen=True)
class Workload:
    """What a step is run on: model, batch and number of steps."""

    geometry: str = "base"
    num_layers: int | None = None
    vocab_size: int = 250_002
    queue_size: int = 131_072
    batch_size: int = 4
    max_length: int = 256
    warmup: int = 1
    steps: int = 3
    num_pairs: int = 2000
    num_languages: int = 1
    flags: tuple[str, ...] = ()
    seed: int = 0

    def config(self) -> InfoXLMConfig:
        """Configuration of the model, without dropout (the released README's setting)."""
        layers = self.num_layers or GEOMETRIES[self.geometry][0]
        values: dict[str, Any] = {**shape(self.geometry), "num_hidden_layers": layers}
        return InfoXLMConfig(
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_length + 2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            xlco_layer=round(2 * layers / 3),
            # Vectors of random weights are nearly the same for all sentences: at the paper's 0.25 their
            # scores of 900 would differ by less than bf16 rounds, and the loss would say nothing.
            xlco_temperature=4.0,
            **values,
        )

    def model(self) -> InfoXLMForPreTraining:
        """Model with the weights that both sides start from."""
        torch.manual_seed(self.seed)
        return InfoXLMForPreTraining(self.config())

    def queue(self, model: InfoXLMForPreTraining) -> Tensor:
        """Full queue that both start from, (Q, D): keys of random sentences, again and again with noise.

        Keys of the model itself: random ones are so far from every query that the loss would be 0.
        """
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(4, self.vocab_size - 1, (16 * 32,), generator=generator)
        keys = MomentumEncoder(model).encode({"input_ids": ids, "lengths": [32] * 16})
        tiled = keys.repeat(self.queue_size // 16 + 1, 1)[: self.queue_size]
        return tiled + 0.1 * torch.randn(tiled.shape, generator=generator)

    def dataset(self, folder: Path) -> JointDataset:
        """Training examples of a synthetic corpus written into `folder`."""
        sizes = {"num_pairs": self.num_pairs, "num_languages": self.num_languages}
        corpus = synthetic_corpus(folder, vocab_size=self.vocab_size, max_length=self.max_length, **sizes)
        return JointDataset(corpus, StreamSettings(), num_items=self.batch_size * (self.warmup + self.steps))

    def arguments(self, folder: Path, dtype: str) -> PretrainingArguments:
        """Training arguments, those of the paper where they matter; `flags` go over them."""
        values: dict[str, Any] = dict(
            output_dir=str(folder),
            max_steps=self.warmup + self.steps,
            per_device_train_batch_size=self.batch_size,
            lr_scheduler_type="constant",
            warmup_steps=0,
            # Without warm-up the paper's would drive the loss of the contrast to 0 in two steps.
            learning_rate=1e-5,
            bf16=dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            logging_steps=10**9,
            disable_tqdm=True,
        )
        given = dict(flag.split("=", 1) for flag in self.flags)
        return PretrainingArguments(**values | {name: _parse(text) for name, text in given.items()})


def _parse(text: str) -> Any:
    """A number, true or false, or text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def synthetic_corpus(
    folder: Path, *, vocab_size: int, max_length: int, num_pairs: int, num_languages: int = 1, seed: int = 0
) -> Corpus:
    """Write shards of MLM blocks and of sentence pairs with the lengths of real text, and open them.

    Args:
        folder: Where the shards go.
        vocab_size: Ids, special ones included.
        max_length: Longest MLM block; a side of a pair has at most half of it.
        num_pairs: Pairs of each language pair; MLM blocks of each language are a quarter as many.
        num_languages: Languages with MLM text, and language pairs.
        seed: Of lengths and ids.
    """
    rng, mask = np.random.default_rng(seed), vocab_size - 1

    def write(name: str, lengths: np.ndarray) -> TokenStore:
        with TokenStoreWriter(folder / name) as writer:
            for length in lengths.tolist():
                writer.append(rng.integers(SPECIAL_IDS, mask, length))
        return TokenStore([folder / name])

    def sentences() -> np.ndarray:
        lengths = MEDIAN_SENTENCE * np.exp(SENTENCE_SPREAD * rng.standard_normal(num_pairs))
        return lengths.astype(np.int64).clip(3, (max_length - 3) // 2)

    mono, bitext = {}, {}
    for language in (f"x{number}" for number in range(num_languages)):
        blocks = rng.integers(int(SHORTEST_BLOCK * max_length), max_length + 1, max(1, num_pairs // 4))
        mono[language] = write(f"mono/{language}", blocks)
        source, target = (write(f"{language}.{side}", sentences()) for side in ("source", "target"))
        bitext[f"en-{language}"] = PairStore(source, target, "en", language)
    all_ids = (0, 1, 2, 3, mask)
    special = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=mask, vocab_size=vocab_size, all_ids=all_ids)
    return Corpus(folder, {}, special, max_length, mono=mono, bitext=bitext, heldout={})

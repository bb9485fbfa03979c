"""Translated text of made-up words, and the flags of a run that learns it in seconds.

The target side says the source's words one by one in other letters, so a few hundred updates can align them.
"""

import random
from pathlib import Path

_SYLLABLES = ("ba", "do", "fi", "gu", "ka", "le", "mo", "ni", "pu", "ra", "so", "ti")


def sentence_pairs(count: int, *, seed: int = 1) -> list[tuple[str, str]]:
    """Distinct pairs of 3 to 6 words from a vocabulary of 40."""
    draw = random.Random(seed)
    words = [first + second + first for first in _SYLLABLES for second in _SYLLABLES if first != second]
    source_words = draw.sample(words, 40)
    target_words = [word.translate(str.maketrans("bdfgklmnprst", "vzxwcyjhqvzx")) for word in source_words]
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        chosen = draw.choices(range(40), k=draw.randint(3, 6))
        pairs[" ".join(source_words[i] for i in chosen)] = " ".join(target_words[i] for i in chosen)
    return list(pairs.items())


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """Write pairs as a TSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return path


TINY_MODEL = (
    "--num_hidden_layers 2 --hidden_size 32 --num_attention_heads 2 --intermediate_size 64 "
    "--max_position_embeddings 66 --xlco_layer 2 --xlco_pooling mean --xlco_similarity cosine "
    "--xlco_temperature 0.05 --queue_size 64 --momentum 0.9"
).split()
TINY_DATA = "--tokenizer_vocab_size 150 --max_seq_length 64 --preprocessing_num_workers 1".split()
TINY_RUN = (
    "--use_cpu true --seed 1 --disable_tqdm true --report_to none --per_device_train_batch_size 8 "
    "--learning_rate 5e-3 --warmup_steps 0 --logging_steps 4 --save_steps 4"
).split()

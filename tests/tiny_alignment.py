"""A tiny encoder whose words have several sub-words or none, and sentences of them."""

from pathlib import Path

from tiny_encoder import word_tokenizer
from tiny_run import tiny_model
from tokenizers import pre_tokenizers

from modeling_infoxlm.hub.formats import save_as_xlm_roberta

SOURCES = [["w4", "w5+w6", "w7"], ["w8"], [], ["w9", "w10+w11+w12"], [f"w{i}" for i in range(40, 49)]]
TARGETS = [["w20", "w21"], ["w22+w23", "w24"], ["w25"], ["w26", "w27", "w28"], ["w30+w31"]]


def save_sub_word_encoder(folder: Path) -> Path:
    """An encoder to which `w4+w5` is one word of two sub-words, `+` a word of none.

    Larger weights than at the start of training: layers differ, and neighbours change a word's state. With
    still larger ones all words become alike, and rounding chooses the links.
    """
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("+", "removed")]
    )
    model = tiny_model(max_position_embeddings=42, initializer_range=0.2)
    save_as_xlm_roberta(model, folder, tokenizer=tokenizer)
    return folder

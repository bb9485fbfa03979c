"""A tokenizer in XLM-R's layout that needs no training."""

import string

from transformers import XLMRobertaTokenizer


def letter_tokenizer(others: str = "", *, max_length: int = 512) -> XLMRobertaTokenizer:
    """A token for `▁`, each letter and each of `others`, so that lengths can be counted."""
    vocabulary = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces = ["▁", *string.ascii_letters, *others]
    vocabulary += [(piece, -1.0 - 0.01 * rank) for rank, piece in enumerate(pieces)]
    return XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)], model_max_length=max_length)

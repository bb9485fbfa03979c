"""Tokenizers in XLM-R's layout that need no training."""

import string

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaTokenizer

VOCAB = 60


def word_tokenizer(
    size: int = VOCAB, *, token_types: bool = False, mask: bool = False, max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Words w4, w5, ... are their own ids, `<mask>` is the last one if asked for.

    Pairs are as XLM-R has them, or with BERT's token types.
    """
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **({"<mask>": size - 1} if mask else {})}
    words = special | {f"w{i}": i for i in range(4, size - mask)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1" if token_types else "<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    masked = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"} if mask else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=max_length,
        model_input_names=["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
        **masked,
    )


def letter_tokenizer(others: str = "", *, max_length: int = 512) -> XLMRobertaTokenizer:
    """A token for `▁`, each letter and each of `others`, so that lengths can be counted."""
    vocabulary = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces = ["▁", *string.ascii_letters, *others]
    vocabulary += [(piece, -1.0 - 0.01 * rank) for rank, piece in enumerate(pieces)]
    return XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)], model_max_length=max_length)

"""A tiny random encoder as a folder that AutoModel loads."""

from pathlib import Path

from tiny_run import VOCAB, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from modeling_infoxlm.hub.formats import save_as_xlm_roberta


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words w4 to w58 are their own ids, in XLM-R's layout."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, VOCAB)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def save_tiny_encoder(folder: Path, **overrides: object) -> Path:
    """Write a plain XLM-R of three layers, or as `overrides` say."""
    save_as_xlm_roberta(tiny_model(**overrides), folder, tokenizer=word_tokenizer())
    return folder

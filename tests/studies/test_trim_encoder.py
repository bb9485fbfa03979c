"""studies/trim_encoder.py: a smaller encoder that computes what the lower layers of the larger one did."""

import lzma
import runpy
from pathlib import Path

import torch
from tiny_run import tiny_model
from tiny_tokenizers import letter_tokenizer
from transformers import AutoModel, AutoTokenizer

from modeling_infoxlm.hub.formats import save_as_xlm_roberta

TRIM = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "trim_encoder.py"))["trim"]
PIECES = ("ab", "abc", "xyz")


def test_what_the_text_needs_is_kept_and_computes_the_same(tmp_path: Path) -> None:
    tokenizer = letter_tokenizer(PIECES)
    large = tiny_model(num_hidden_layers=3, vocab_size=len(tokenizer))
    save_as_xlm_roberta(large, tmp_path / "large", tokenizer=tokenizer)
    with lzma.open(tmp_path / "text.xz", "wt", encoding="utf-8") as text:
        text.write("ab ab\tabc def\nnot read xyz\n")
    files = [str(tmp_path / "text.xz")]
    TRIM(str(tmp_path / "large"), str(tmp_path / "small"), layers=2, size=14, files=files, lines=1)
    small, own = (auto.from_pretrained(tmp_path / "small") for auto in (AutoModel, AutoTokenizer))
    assert (small.config.num_hidden_layers, len(own), own.mask_token_id) == (2, 14, 13)
    assert own.tokenize("ab abc fed") == ["▁", "ab", "▁", "abc", "▁", "f", "e", "d"]
    assert own("xyz", add_special_tokens=False)["input_ids"][1:] == [own.unk_token_id]
    before = tokenizer("ab abc fed <mask>", return_tensors="pt")
    after = own("ab abc fed <mask>", return_tensors="pt")
    expected = AutoModel.from_pretrained(tmp_path / "large")(**before, output_hidden_states=True)
    torch.testing.assert_close(small(**after).last_hidden_state, expected.hidden_states[2])

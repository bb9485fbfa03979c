"""Plain transformers' XLM-R, padded, with eager attention: the oracle of our classes and of the packed pass.

Shape letters: B batch, L padded length, T tokens of all sequences, D hidden.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

PAD = 1
TINY: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def xlm_roberta(dtype: torch.dtype = torch.float32, **changes: Any) -> XLMRobertaForMaskedLM:
    """XLM-R without pooler, each parameter random: biases of 0 and layer norms of 1 would hide errors."""
    torch.manual_seed(0)
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(**{**TINY, **changes}, attn_implementation="eager"))
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if name.lower().endswith("norm.weight") else 0.0, std=0.2)
    return model.to(dtype).eval()


def random_sequences(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Token ids without special tokens other than `<s>` first and `</s>` last."""
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for length in lengths:
        ids = torch.randint(4, TINY["vocab_size"] - 1, (length,), generator=generator)
        ids[-1], ids[0] = 2, 0
        sequences.append(ids)
    return sequences


def pad(sequences: Sequence[Tensor]) -> dict[str, Tensor]:
    """Input ids and attention mask, each (B, L)."""
    longest = max(len(ids) for ids in sequences)
    input_ids = torch.full((len(sequences), longest), PAD)
    attention_mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for i, ids in enumerate(sequences):
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def unpad(hidden: Tensor, lengths: Sequence[int]) -> Tensor:
    """Rows (T, D) of a padded (B, L, D), sequence after sequence."""
    return torch.cat([hidden[i, :length] for i, length in enumerate(lengths)])


def hidden_states(model: XLMRobertaForMaskedLM, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Hidden states of every layer, the embeddings first, each (T, D)."""
    states = model.roberta(**pad(sequences), output_hidden_states=True).hidden_states
    return [unpad(state, [len(ids) for ids in sequences]) for state in states]


def masked_lm_sum(
    model: XLMRobertaForMaskedLM, sequences: Sequence[Tensor], rows: Tensor, labels: Tensor
) -> Tensor:
    """Transformers' own masked-LM loss times the number of labels; `rows` count tokens over all sequences."""
    flat = torch.full((sum(len(ids) for ids in sequences),), -100)
    flat[rows] = labels
    padded = pad(list(flat.split([len(ids) for ids in sequences])))
    padded_labels = torch.where(padded["attention_mask"].bool(), padded["input_ids"], -100)
    return model(**pad(sequences), labels=padded_labels).loss * len(labels)


def worst_error(
    actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]
) -> tuple[float, str]:
    """Largest difference of any tensor relative to its own largest value, and its name.

    A tensor that is nothing but rounding (the key bias has no gradient: softmax does not see it) is held
    against a hundredth of the largest tensor. None, the gradient of what was not used, counts as zero.
    """
    assert set(actual) == set(expected)
    sizes = {name: largest_entry(value) for name, value in expected.items()}
    floor = max(sizes.values()) / 100
    assert floor > 0, "a comparison of zeros would prove nothing"
    return max(
        (largest_entry(difference(actual[name], expected[name])) / max(sizes[name], floor), name)
        for name in sizes
    )


def largest_entry(value: Tensor | None) -> float:
    """Largest absolute value; 0 for None or nothing, infinite if one is no number (`max` would skip it)."""
    if value is None or value.numel() == 0:
        return 0.0
    return float(value.detach().nan_to_num(nan=math.inf).abs().max())


def difference(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Difference of two tensors, None being zero."""
    if left is None or right is None:
        return right if left is None else left
    return left - right


def score(outputs: Sequence[Tensor]) -> Tensor:
    """A scalar to which every output number contributes with its own random weight."""
    generator = torch.Generator().manual_seed(9)
    return sum(
        (output * torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)).sum()
        for output in outputs
    )


def gradients(module: torch.nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    """Gradients by name; the output table goes by the name of the embeddings that it is tied to."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    tied = ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight")
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return dict(zip([name.replace(*tied) for name in names], found, strict=True))

"""ONNX folders by transformers' own exporter, compared with torch before anything is released.

Shapes: B sequences, C choices of a multiple choice question, L padded length.
"""

import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, XLMRobertaForMultipleChoice

from modeling_infoxlm.backbones import max_sequence_length
from modeling_infoxlm.hub.formats import plain_encoder, plain_model
from modeling_infoxlm.modeling_infoxlm import (
    InfoXLMForMaskedLM,
    InfoXLMForPreTraining,
    InfoXLMModel,
    InfoXLMPreTrainedModel,
)
from modeling_infoxlm.runs.errors import UsageError

logger = logging.getLogger(__name__)

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MODEL_FILE = "model.onnx"
# Largest difference of an output from torch's. Measured: about 1e-6 for fp32 products in another order.
TOLERANCE = 1e-4

# Their heads predict masked words; what is asked of them as ONNX is the encoder.
_WITHOUT_HEAD = (InfoXLMModel, InfoXLMForPreTraining, InfoXLMForMaskedLM)
_NUM_CHOICES = 3
# Traced with sizes that differ from each other, from 1 and from every size of the model.
_TRACED_LENGTHS = (13, 5, 9, 2, 11)


def save_as_onnx(
    model: InfoXLMPreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layer: int | None = None,
) -> PreTrainedModel:
    """Write `model.onnx`, with batch size and length left open, and its configuration.

    A fine-tuned model gives the logits of its head; an encoder, and a model of pre-training, give
    `last_hidden_state`. The weights are fp32 and lie in `model.onnx.data`. Half precision is not offered:
    measured at 12 layers, float16 differs from torch's by 1e-2, and for bfloat16 ONNX Runtime has no kernels
    on the CPU. Nothing is written if the comparison fails.

    Args:
        model: Trained model; not changed.
        folder: Where to write; made if missing.
        tokenizer: Written beside the graph when given.
        layer: Export the encoder alone, cut at this layer; 0 is the embedding output. None keeps all of it.

    Returns:
        The model in torch that was exported.

    Raises:
        UsageError: If a package is missing, or there is no such layer.
        RuntimeError: If an output differs from torch's by more than `TOLERANCE`.
    """
    require_packages()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    is_encoder = layer is not None or isinstance(model, _WITHOUT_HEAD)
    plain = plain_encoder(model, layer) if is_encoder else plain_model(model)
    plain.config.architectures = [type(plain).__name__]
    with tempfile.TemporaryDirectory(dir=folder) as unchecked:
        _export(plain, Path(unchecked))
        _check(plain, Path(unchecked))
        for file in Path(unchecked).iterdir():
            file.replace(folder / file.name)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return plain


def require_packages() -> None:
    """Refuse to begin without the libraries, with the command that installs them."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"ONNX needs {', '.join(missing)}: pip install 'modeling-infoxlm[onnx]'")


def _export(model: PreTrainedModel, folder: Path) -> None:
    """Trace the model with open batch size, number of choices and length."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    inputs = example_batch(model, _TRACED_LENGTHS)
    is_open = torch.export.Dim.DYNAMIC
    shapes = {name: dict.fromkeys(range(part.dim()), is_open) for name, part in inputs.items()}
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes)
    with _quiet():
        OnnxExporter().export(model, inputs, config=config).save_pretrained(folder)
    _name_axes(folder / MODEL_FILE)


def _name_axes(path: Path) -> None:
    """Call the open axes what they are; the exporter numbers them, and those of each input anew."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    names: dict[str, str] = {}
    for given in model.graph.input:
        batch, *choices, length = (axis.dim_param for axis in given.type.tensor_type.shape.dim)
        names |= {batch: "batch_size", **dict.fromkeys(choices, "num_choices"), length: "sequence_length"}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]
    onnx.save(model, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's steps, and its notes on packages that are not needed, from a command's output."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@torch.no_grad()
def _check(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a file of which ONNX Runtime makes something else than torch.

    On one sequence, sequences of one length, padded ones, and one as long as the positions reach.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / MODEL_FILE), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    differences = []
    for lengths in ([7], [4, 4, 4], [3, 10, 2, 6], [max_sequence_length(model.config)]):
        batch = example_batch(model, lengths)
        # The embedding output of layer 0 reads no mask, so that graph has none.
        found = session.run(names, {given.name: batch[given.name].numpy() for given in session.get_inputs()})
        expected = model(**batch)
        pairs = zip(names, found, strict=True)
        differences += [(torch.from_numpy(value) - expected[name]).abs().max() for name, value in pairs]
    largest = float(torch.stack(differences).max())  # NaN if one is
    if not largest <= TOLERANCE:
        raise RuntimeError(
            f"the ONNX graph differs from torch by {largest:.1e}, more than {TOLERANCE:.0e}, "
            "so it is not released; try other versions of onnx, onnxscript and onnxruntime."
        )
    logger.info("ONNX Runtime and torch differ by at most %.1e.", largest)


def example_batch(model: PreTrainedModel, lengths: Sequence[int]) -> dict[str, Any]:
    """Padded sequences of made-up tokens: `input_ids` and `attention_mask`, (B, L), or (B, C, L) for choices.

    Of so many tokens, from the model's vocabulary and with its padding.
    """
    choices = _NUM_CHOICES if isinstance(model, XLMRobertaForMultipleChoice) else 1
    pad, vocab_size = model.config.pad_token_id, model.config.vocab_size
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).repeat_interleave(choices)[:, None]
    places = torch.arange(mask.numel()).reshape(mask.shape)
    tokens = (places * 7919) % (vocab_size - 1)  # 7919: a prime, so that neighbours are far apart
    tokens = tokens + (tokens >= pad)  # skips the padding id
    batch = {"input_ids": tokens.masked_fill(~mask, pad), "attention_mask": mask.long()}
    if choices == 1:
        return batch
    return {name: part.unflatten(0, (len(lengths), choices)) for name, part in batch.items()}

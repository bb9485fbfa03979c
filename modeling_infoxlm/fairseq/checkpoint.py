"""`infoxlm convert-fairseq`: a checkpoint of the released code becomes a model folder.

    infoxlm convert-fairseq checkpoint_last.pt model --dict dict.txt --tokenizer_name xlm-roberta-base

The folder holds

- the model, as `InfoXLMForPreTraining.from_pretrained` loads it: `model_fast`, or `model_slow` with
  `--use slow`, with its projection of the contrast; and the tokenizer if one is given;
- `momentum_state.safetensors`: the momentum encoder (`momentum.*`: `model_slow` up to the layer of the
  contrast, with its projection) and the queue (`queue.keys`, `queue.cursor`, `queue.num_filled`), fp32, by
  the names that `InfoXLMTrainer` writes in a checkpoint. A new run starts from it with
  `--model_name_or_path model --momentum_state model`; it is no checkpoint to resume from, since fairseq's
  optimiser and place in the data are not converted;
- `conversion.json`: what it was made of, what was left out, and which flags of fairseq were read.

A single RoBERTa or XLM-R of fairseq gives a model without projection, and no momentum state.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from modeling_infoxlm.configuration_infoxlm import InfoXLMConfig
from modeling_infoxlm.fairseq.config import make_config, recorded_settings
from modeling_infoxlm.fairseq.vocabulary import check_vocabulary
from modeling_infoxlm.fairseq.weights import (
    Checkpoint,
    Encoder,
    Queue,
    layer_number,
    listed,
    naming,
    read_checkpoint,
    read_file,
    to_xlm_roberta,
)
from modeling_infoxlm.key_queue import KeyQueue
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.momentum import MomentumEncoder
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import file_sha256, whole_folder, write_json
from modeling_infoxlm.runs.flags import flag, name_leading
from modeling_infoxlm.training.arguments import ModelArguments
from modeling_infoxlm.training.contrast import MOMENTUM_STATE_NAME
from modeling_infoxlm.training.model_setup import load_tokenizer

CONVERSION_NAME = "conversion.json"
# A run that was started in the folder is not this command's to replace.
_OURS = (
    *(CONVERSION_NAME, MOMENTUM_STATE_NAME, "model*.safetensors*", "config.json", "generation_config.json"),
    *("*token*", "sentencepiece*", "*.py"),
)


@dataclass
class ConvertArguments:
    """A checkpoint of fairseq and the model folder that is made of it."""

    _argument_group_name = "convert-fairseq"

    checkpoint_file: str = flag("", "Checkpoint of fairseq, such as model.pt.")
    output_dir: str = flag("", "Folder that is written.")
    dict: str | None = flag(None, "Its dict.txt: the order of ids is held against the tokenizer's.")
    tokenizer_name: str | None = flag(None, "Tokenizer stored with the model: a folder or a Hub name.")
    use: Literal["fast", "slow"] = flag("fast", "The trained encoder, or its momentum copy.")
    xlco_layer: int | None = flag(None, "Layer of the contrast; none takes what the checkpoint says.")
    dtype: Literal["float32", "bfloat16", "float16"] = flag("float32", "Type of the model's stored weights.")
    ignore_unknown: bool = flag(False, "List tensors that belong to no encoder, and go on without them.")
    overwrite_output_dir: bool = flag(False, "Replace the folder if an earlier conversion wrote it.")


def convert_fairseq_command(argv: list[str]) -> None:
    """Convert a checkpoint of the released code: `infoxlm convert-fairseq`."""
    argv = name_leading(argv, ("--checkpoint_file", "--output_dir"))
    (arguments,) = parse_args_with_config(
        (ConvertArguments,), argv, program="infoxlm convert-fairseq", about=__doc__
    )
    if not arguments.checkpoint_file or not arguments.output_dir:
        raise UsageError("give a checkpoint and a folder: infoxlm convert-fairseq model.pt model.")
    print("\n".join(convert_fairseq(arguments)))


def convert_fairseq(arguments: ConvertArguments) -> list[str]:
    """Convert a checkpoint; the folder appears whole or not at all.

    Returns:
        What was done, as lines to print.

    Raises:
        UsageError: If the checkpoint, the dictionary or the tokenizer cannot be used; nothing is written.
    """
    path, options = Path(arguments.checkpoint_file), {"overwrite": arguments.overwrite_output_dir}
    with whole_folder(arguments.output_dir, marker=CONVERSION_NAME, ours=_OURS, **options) as folder:
        content, name = read_file(path), arguments.tokenizer_name
        with naming(path):
            checkpoint = read_checkpoint(content)
            if checkpoint.unknown and not arguments.ignore_unknown:
                unknown = f"{len(checkpoint.unknown)} tensors that belong to no encoder known here"
                advice = "Add --ignore_unknown true to convert the rest without them"
                raise UsageError(f"it has {unknown}: {listed(checkpoint.unknown)}. {advice}.")
            encoder = checkpoint.fast if arguments.use == "fast" else checkpoint.slow
            if encoder is None:
                raise UsageError("it holds one encoder and no momentum copy; leave --use slow out.")
            config, notes = make_config(checkpoint, arguments.xlco_layer)
        tokenizer = None if name is None else load_tokenizer(ModelArguments(tokenizer_name=name))
        notes += check_vocabulary(config.vocab_size, arguments.dict, tokenizer)
        model = _build(encoder, config)
        torch.nn.Module.to(model, dtype=getattr(torch, arguments.dtype))
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if checkpoint.slow is not None and checkpoint.queue is not None:
            _save_momentum_state(checkpoint.slow, checkpoint.queue, config, folder / MOMENTUM_STATE_NAME)
        record = _record(path, checkpoint, encoder, config.resolved_xlco_layer(), notes)
        write_json(folder / CONVERSION_NAME, record)
    return _summary(arguments.output_dir, record, config)


def _build(encoder: Encoder, config: InfoXLMConfig) -> InfoXLMForPreTraining:
    model = InfoXLMForPreTraining(config)
    model.load_state_dict(to_xlm_roberta(encoder))
    return model.eval()


def _save_momentum_state(slow: Encoder, queue: Queue, config: InfoXLMConfig, path: Path) -> None:
    """Write momentum encoder and queue in the Trainer's layout, by the classes that read them."""
    keys = KeyQueue(len(queue.keys), config.hidden_size)
    keys.cursor, keys.num_filled = queue.cursor, min(queue.num_enqueued, len(queue.keys))
    # fairseq fills the slots that were never written with random numbers.
    keys.negatives().copy_(queue.keys[: keys.num_filled])
    if not keys.negatives().isfinite().all():
        raise UsageError("the checkpoint's queue holds keys that are not finite; its training had failed.")
    momentum_encoder = MomentumEncoder(_build(slow, config))
    state = {f"momentum.{name}": value for name, value in momentum_encoder.state_dict().items()}
    state |= {f"queue.{name}": value for name, value in keys.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def _left_out(checkpoint: Checkpoint, encoder: Encoder, xlco_layer: int) -> list[str]:
    """Tensors of the encoder that was not chosen, those of the momentum encoder that make no key."""
    if encoder is not checkpoint.fast:
        return [f"model_fast.{name}" for name in checkpoint.fast.tensors]
    # The momentum encoder ends at the layer of the contrast.
    return [
        f"model_slow.{name}"
        for name in (checkpoint.slow.tensors if checkpoint.slow else ())
        if name.startswith("lm_head.") or (layer_number(name) or 0) >= xlco_layer
    ]


def _record(
    path: Path, checkpoint: Checkpoint, encoder: Encoder, xlco_layer: int, notes: list[str]
) -> dict[str, Any]:
    queue, projection = checkpoint.queue, encoder.projection
    return {
        "source": {"file": path.name, "sha256": file_sha256(path)},
        "encoder": encoder.name,
        "num_tensors": len(encoder.stored) + (projection is not None),
        "has_projection": projection is not None,
        "queue": queue and {"size": len(queue.keys), "num_enqueued": queue.num_enqueued},
        "left_out": {
            "entries": checkpoint.other_entries,
            "tensors": _left_out(checkpoint, encoder, xlco_layer),
            "unknown_tensors": checkpoint.unknown,
        },
        "settings": recorded_settings(checkpoint.settings),
        "notes": notes,
    }


def _summary(output_dir: str, record: dict[str, Any], config: InfoXLMConfig) -> list[str]:
    left_out, queue = record["left_out"], record["queue"]
    projection = "with" if record["has_projection"] else "without"
    lines = [
        f"{output_dir}: {record['num_tensors']} tensors of {record['encoder']} "
        f"({config.num_hidden_layers} layers of {config.hidden_size}, {config.vocab_size:,} tokens), "
        f"{projection} projection; contrast at layer {config.xlco_layer}, "
        f"temperature {config.xlco_temperature}."
    ]
    if queue is not None:
        lines.append(
            f"  {MOMENTUM_STATE_NAME}: momentum encoder and queue of {queue['size']:,} keys, "
            f"{min(queue['size'], queue['num_enqueued']):,} of them filled."
        )
    for kind, names in left_out.items():
        if names:
            lines.append(f"  left out, {kind.replace('_', ' ')} ({len(names)}): {listed(names)}")
    return [*lines, *(f"  note: {note}" for note in record["notes"])]

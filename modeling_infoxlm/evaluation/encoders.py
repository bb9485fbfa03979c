"""Any encoder that `AutoModel` loads, as a source of sentence vectors.

XLM-R and InfoXLM run packed and leave at the asked layer (`encoding.py`); every other architecture runs
through its own padded forward pass.

Shapes: N sentences, T tokens of the longest, D hidden, L layers and the embedding output.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling_infoxlm.evaluation.encoding import PROGRESS_DELAY, check_finite, encode_texts
from modeling_infoxlm.evaluation.results import ModelRecord
from modeling_infoxlm.hub.loading import check_encoder, load, load_whole_model
from modeling_infoxlm.hub.source import hub_commit
from modeling_infoxlm.modeling_infoxlm import InfoXLMModel
from modeling_infoxlm.packed import max_sequence_length
from modeling_infoxlm.runs.json_files import check_shape, read_json
from modeling_infoxlm.runs.process import UsageError
from modeling_infoxlm.runs.provenance import hash_weights

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls"]

_PACKED_TYPES = ("xlm-roberta", "infoxlm")
# Their positions are numbered from pad_token_id + 1, so so many rows of the table are never used.
_OFFSET_POSITIONS = ("roberta", "camembert", "xlm-roberta-xl", "mpnet", "xmod", "data2vec-text", "ibert")
# Fields of a configuration that say where and how it was stored.
_NOT_COMPUTED = "_name_or_path architectures auto_map dtype tokenizer_class transformers_version".split()
_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768}
_SENTENCES_PER_WINDOW = 32768


@dataclass
class EncoderArguments:
    """Which encoder is measured."""

    _argument_group_name = "encoder"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Encoder: a Hub name or a folder that AutoModel loads, or a sentence-transformers folder."
        },
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of model_name_or_path on the Hub."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer, a Hub name or a folder. Unset: that of model_name_or_path."},
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder for files from the Hub. Unset: the Hub client's own."}
    )
    # repr=False: a printed or logged instance must not show the secret.
    token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Hub access token. Unset: the one stored by `hf auth login`."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model code that comes with the checkpoint."}
    )
    bf16: bool = field(
        default=False, metadata={"help": "Run products in bf16: faster where the processor has it."}
    )

    def hub_options(self) -> dict[str, Any]:
        """What `from_pretrained` is given beside the name."""
        return {
            "revision": self.model_revision,
            "cache_dir": self.cache_dir,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }


@dataclass(frozen=True)
class Encoder:
    """A model in eval mode, its tokenizer, and what a result file says of it.

    Attributes:
        model: Without a head; an `InfoXLMModel` for XLM-R and InfoXLM.
        tokenizer: Fits the model's vocabulary.
        record: Name, revision and hash.
        bf16: Whether products run in bf16.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    record: ModelRecord
    bf16: bool = False

    @property
    def num_layers(self) -> int:
        """Layers; layer 0 is the embedding output, so there is one vector more of each token."""
        return int(self.model.config.num_hidden_layers)

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence, special tokens included."""
        return longest_sequence(self.model.config, self.tokenizer)

    def check_layer(self, layer: int) -> int:
        """Return the layer.

        Raises:
            UsageError: If the model does not have it.
        """
        if not 0 <= layer <= self.num_layers:
            raise UsageError(
                f"layer must be in 0..{self.num_layers}, found {layer}: "
                f"{self.record.name_or_path} has {self.num_layers} layers, and 0 is the embedding output."
            )
        return layer

    def encode(
        self, texts: Sequence[str], *, layer: int, pooling: Pooling = "mean", progress: bool = True
    ) -> Tensor:
        """Sentence vectors, (N, D), fp32, not normalised, row i for text i.

        Args:
            texts: N texts; longer ones are cut at `max_length`.
            layer: 0 is the embedding output.
            pooling: `"mean"` over all tokens, special ones included, or `"cls"`, the first token.
            progress: Show a progress bar when it takes longer than two seconds.

        Raises:
            UsageError: If the model does not have the layer, or the vector of a text is not finite.
        """
        self.check_layer(layer)
        if isinstance(self.model, InfoXLMModel) and self.tokenizer.is_fast:
            return encode_texts(
                self.model,
                self.tokenizer,
                texts,
                layer=layer,
                pooling=pooling,
                bf16=self.bf16,
                progress=progress,
            )
        return self._encode_padded(texts, [layer], pooling, progress)[0]

    def encode_layers(
        self, texts: Sequence[str], *, pooling: Pooling = "mean", progress: bool = True
    ) -> Tensor:
        """Sentence vectors of every layer in one pass, (L + 1, N, D), fp32; see `encode`."""
        return self._encode_padded(texts, range(self.num_layers + 1), pooling, progress)

    @torch.no_grad()
    def _encode_padded(
        self, texts: Sequence[str], layers: Sequence[int], pooling: Pooling, progress: bool
    ) -> Tensor:
        vectors = torch.empty(len(layers), len(texts), self.model.config.hidden_size)
        bar = tqdm(
            total=len(texts), desc="encoding", unit=" sentences", delay=PROGRESS_DELAY, disable=not progress
        )
        with bar, self._autocast():
            for members, batch in self._batches(texts):
                hidden = self.model(**batch, output_hidden_states=True).hidden_states
                mask = batch["attention_mask"]
                for row, layer in enumerate(layers):
                    vectors[row, members] = pool(hidden[layer].float(), mask, pooling).cpu()
                check_finite(vectors[:, members], self.model, lambda number: repr(texts[number]), members)
                bar.update(len(members))
        return vectors

    def _autocast(self) -> Any:
        return torch.autocast(self.model.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Padded batches of texts of like length, and the numbers of these texts."""
        most = _TOKENS_PER_BATCH.get(self.model.device.type, _TOKENS_PER_BATCH["cuda"])
        for start in range(0, len(texts), _SENTENCES_PER_WINDOW):
            window = list(texts[start : start + _SENTENCES_PER_WINDOW])
            rows = self.tokenizer(window, truncation=True, max_length=self.max_length)["input_ids"]
            lengths = np.array([len(row) for row in rows])
            for members in batches_by_length(lengths, most):
                batch = pad_rows(self.tokenizer, {"input_ids": [rows[i] for i in members]})
                yield start + members, {name: part.to(self.model.device) for name, part in batch.items()}


def batches_by_length(lengths: np.ndarray, most_tokens: int) -> Iterator[np.ndarray]:
    """Numbers of sequences of like length, whose padded batch has at most so many tokens, or one sequence.

    The longest come first: they need the most memory, and if it is not enough it shows at once.

    Args:
        lengths: Tokens of each sequence, (N,).
        most_tokens: Of a padded batch.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, most_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def pad_rows(tokenizer: PreTrainedTokenizerBase, columns: dict[str, list[list[int]]]) -> BatchEncoding:
    """Pad rows to the longest at their end, with a mask, whatever the tokenizer is set to.

    Scores must not depend on the rows beside: the first state is that of `<s>`, and words and answers are
    counted from there.
    """
    padded: BatchEncoding = tokenizer.pad(
        columns, padding_side="right", return_attention_mask=True, return_tensors="pt"
    )
    return padded


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Sentence vectors (N, D) of hidden states (N, T, D): the first token's, or the mean over the mask."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def longest_sequence(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens of a sequence that a model has positions for, special tokens included."""
    if config.model_type in _PACKED_TYPES:
        return max_sequence_length(config)
    # Models with relative positions name no limit; then the tokenizer's holds.
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if config.model_type in _OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    return int(min(positions, tokenizer.model_max_length))


def load_encoder(arguments: EncoderArguments) -> Encoder:
    """Load an encoder of any architecture that `AutoModel` knows, and its tokenizer.

    Raises:
        UsageError: If none is named, it cannot be loaded, or the tokenizer does not fit the model.
    """
    if arguments.model_name_or_path is None:
        raise UsageError("no encoder: give --model_name_or_path, a Hub name or a folder.")
    name = transformer_folder(arguments.model_name_or_path)
    options = arguments.hub_options()
    config = load(AutoConfig.from_pretrained, name, part="config", **options)
    model_class: Any = InfoXLMModel if config.model_type in _PACKED_TYPES else AutoModel
    model, report = load_whole_model(model_class, name, dtype=torch.float32, **options)
    check_encoder(name, model, sorted(report["missing_keys"]))
    tokenizer: PreTrainedTokenizerBase = load(
        AutoTokenizer.from_pretrained, arguments.tokenizer_name or name, part="tokenizer", **options
    )
    check_tokenizer(tokenizer, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = describe_model(arguments, model, tokenizer, model_type=config.model_type)
    return Encoder(model.to(device).eval(), tokenizer, record, arguments.bf16)


def transformer_folder(name_or_path: str) -> str:
    """Folder of the transformer inside a sentence-transformers folder; anything else is returned as it is.

    Raises:
        UsageError: If the folder's list of modules names no transformer, or one outside the folder.
    """
    root = Path(name_or_path)
    modules = root / "modules.json"
    if not modules.is_file():
        return name_or_path
    try:
        content = read_json(modules)
        check_shape(content, [{"type?": str, "path?": str}], modules)
    except ValueError as error:
        raise UsageError(str(error)) from error
    for module in content:
        if module.get("type", "").rpartition(".")[2] == "Transformer":
            folder = root / module.get("path", "")
            if not folder.resolve().is_relative_to(root.resolve()):
                raise UsageError(f"{modules} names a folder outside of {root}: {module['path']!r}.")
            return str(folder)
    raise UsageError(f"{modules} names no module of type Transformer.")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Refuse a tokenizer with more tokens than the model's table has rows.

    Raises:
        UsageError: With both numbers.
    """
    if len(tokenizer) > config.vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model's table {config.vocab_size:,}; "
            "use the tokenizer that belongs to the model."
        )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything that decides which ids a fast tokenizer gives a text, hex."""
    if not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} is a slow tokenizer; a fast one is needed (a folder with a "
            "tokenizer.json)."
        )
    text = tokenizer.backend_tokenizer.to_str() + repr(tokenizer.model_input_names)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def config_hash(config: Any) -> str:
    """Hash of the fields of a configuration that change what the model computes, hex."""
    fields = {name: value for name, value in config.to_dict().items() if name not in _NOT_COMPUTED}
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def describe_model(
    arguments: EncoderArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model_type: str,
) -> ModelRecord:
    """Name, revision, hashes and size of a loaded model.

    Args:
        arguments: Which model was asked for.
        model: As it was loaded.
        tokenizer: What its inputs are made by.
        model_type: The checkpoint's own; plain XLM-R may be loaded as InfoXLM.
    """
    name = str(arguments.model_name_or_path)
    folder = Path(transformer_folder(name))
    is_folder = folder.is_dir()
    places = {key: arguments.hub_options()[key] for key in ("revision", "cache_dir", "token")}
    return ModelRecord(
        name_or_path=name,
        revision=None if is_folder else hub_commit(name, places),
        sha256=hash_weights(folder) if is_folder else None,
        model_type=model_type,
        num_parameters=model.num_parameters(),
        config_sha256=config_hash(model.config),
        tokenizer_sha256=tokenizer_hash(tokenizer) if tokenizer.is_fast else None,
    )

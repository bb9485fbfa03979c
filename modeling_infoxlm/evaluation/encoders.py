"""Any encoder that `AutoModel` loads, as a source of sentence vectors.

Shapes: N sentences, K layers, D hidden.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from modeling_infoxlm.evaluation.encoding import OUR_TYPES, EncodeOptions, encode_layers, longest_sequence
from modeling_infoxlm.evaluation.results import ModelRecord
from modeling_infoxlm.hub.loading import check_encoder, load, load_whole_model
from modeling_infoxlm.hub.source import hub_commit
from modeling_infoxlm.modeling_infoxlm import InfoXLMModel
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import check_shape, read_json, text_sha256
from modeling_infoxlm.runs.flags import flag
from modeling_infoxlm.runs.provenance import hash_weights

# Fields of a configuration that say where and how it was stored.
_NOT_COMPUTED = "_name_or_path architectures auto_map dtype tokenizer_class transformers_version".split()


@dataclass
class EncoderArguments:
    """Which encoder is measured."""

    _argument_group_name = "encoder"
    model_name_or_path: str | None = flag(
        None, "Encoder: a Hub name or a folder that AutoModel loads, or a sentence-transformers folder."
    )
    model_revision: str = flag("main", "Branch, tag or commit of model_name_or_path on the Hub.")
    tokenizer_name: str | None = flag(None, "Tokenizer, a Hub name or a folder. Unset: the model's own.")
    cache_dir: str | None = flag(None, "Folder for files from the Hub. Unset: the Hub client's own.")
    # repr=False: a printed or logged instance must not show the secret.
    token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Hub access token. Unset: the one stored by `hf auth login`."},
    )
    trust_remote_code: bool = flag(False, "Run model code that comes with the checkpoint.")
    bf16: bool = flag(False, "Run products in bf16: faster where the processor has it.")

    def hub_options(self) -> dict[str, Any]:
        """What `from_pretrained` is given beside the name."""
        return {
            "revision": self.model_revision,
            "cache_dir": self.cache_dir,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }


@dataclass(frozen=True)
class Checkpoint:
    """A model with any head or none, and its tokenizer."""

    model: PreTrainedModel  # in fp32
    tokenizer: PreTrainedTokenizerBase  # fits the model's vocabulary
    record: ModelRecord  # what it was loaded from, for result files
    new_weights: tuple[str, ...]  # names of the parameters that the checkpoint does not have, sorted

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence, special tokens included."""
        return longest_sequence(self.model.config, self.tokenizer)


@dataclass(frozen=True)
class Encoder(Checkpoint):
    """A model without a head, in eval mode; an `InfoXLMModel` for XLM-R and InfoXLM."""

    bf16: bool = False  # whether products run in bf16

    @property
    def num_layers(self) -> int:
        """Layers; layer 0 is the embedding output, so there is one vector more of each token."""
        return int(self.model.config.num_hidden_layers)

    def check_layer(self, layer: int) -> int:
        """Return the layer; a `UsageError` if the model does not have it."""
        if not 0 <= layer <= self.num_layers:
            raise UsageError(
                f"layer must be in 0..{self.num_layers}, found {layer}: "
                f"{self.record.name_or_path} has {self.num_layers} layers, and 0 is the embedding output."
            )
        return layer

    def encode(
        self,
        texts: Sequence[str],
        *,
        layer: int,
        out: Tensor | None = None,
        progress: bool = True,
        **options: Unpack[EncodeOptions],
    ) -> Tensor:
        """Sentence vectors of N texts, cut at `max_length`: (N, D), row i for text i.

        They are written to `out` if it is given; else they are fp32 on the model's device. See
        `EncodeOptions`.

        Raises:
            UsageError: If the model does not have the layer, or the vector of a text is not finite.
        """
        place = None if out is None else out[None]
        return self.encode_layers(texts, layers=[layer], out=place, progress=progress, **options)[0]

    def encode_layers(
        self,
        texts: Sequence[str],
        *,
        layers: Sequence[int] | None = None,
        out: Tensor | None = None,
        progress: bool = True,
        **options: Unpack[EncodeOptions],
    ) -> Tensor:
        """Sentence vectors of K layers, None for all, in one pass, (K, N, D); see `encode`."""
        layers = range(self.num_layers + 1) if layers is None else [self.check_layer(one) for one in layers]
        if out is None:
            shape = (len(layers), len(texts), self.model.config.hidden_size)
            out = torch.empty(shape, device=self.model.device)
        options.setdefault("bf16", self.bf16)
        return encode_layers(
            self.model, self.tokenizer, texts, out, layers=layers, progress=progress, **options
        )


def load_checkpoint(
    arguments: EncoderArguments, auto_class: Any, *, ours: Any = None, **overrides: Any
) -> Checkpoint:
    """Load a model with any head or none from a checkpoint that has the encoder, and its tokenizer.

    Args:
        arguments: Which one.
        auto_class: Such as `AutoModel`.
        ours: In place of it for XLM-R and InfoXLM; None for none.
        overrides: Fields of the configuration, such as `num_labels`.

    Raises:
        UsageError: If it cannot be loaded, lacks weights of the encoder, or the tokenizer does not fit the
            model.
    """
    if arguments.model_name_or_path is None:
        raise UsageError("no model: give --model_name_or_path, a Hub name or a folder.")
    name = transformer_folder(arguments.model_name_or_path)
    options = arguments.hub_options()
    config = load(AutoConfig.from_pretrained, name, part="config", **overrides, **options)
    tokenizer: PreTrainedTokenizerBase = load(
        AutoTokenizer.from_pretrained, arguments.tokenizer_name or name, part="tokenizer", **options
    )
    if len(tokenizer) > config.vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model's table {config.vocab_size:,}; "
            "use the tokenizer that belongs to the model."
        )
    model_type = config.model_type  # plain XLM-R may be loaded as InfoXLM
    if ours is not None and model_type in OUR_TYPES:  # it makes a configuration of its own of XLM-R's
        model, report = load_whole_model(ours, name, dtype=torch.float32, **overrides, **options)
    else:
        model, report = load_whole_model(auto_class, name, dtype=torch.float32, config=config, **options)
    missing = tuple(sorted(report["missing_keys"]))
    check_encoder(arguments.model_name_or_path, model, missing)
    return Checkpoint(model, tokenizer, _describe(arguments, model, tokenizer, model_type), missing)


def load_encoder(arguments: EncoderArguments) -> Encoder:
    """Load an encoder of any architecture that `AutoModel` knows; a `UsageError` as of `load_checkpoint`."""
    loaded = load_checkpoint(arguments, AutoModel, ours=InfoXLMModel)
    device: Any = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded.model.to(device).eval()
    return Encoder(**vars(loaded), bf16=arguments.bf16)


def transformer_folder(name_or_path: str) -> str:
    """Folder of the transformer inside a sentence-transformers folder; anything else is returned as it is."""
    root = Path(name_or_path)
    modules = root / "modules.json"
    if not modules.is_file():
        return name_or_path
    content = read_json(modules)
    check_shape(content, [{"type?": str, "path?": str}], modules)
    for module in content:
        if module.get("type", "").rpartition(".")[2] == "Transformer":
            folder = root / module.get("path", "")
            if not folder.resolve().is_relative_to(root.resolve()):
                raise UsageError(f"{modules} names a folder outside of {root}: {module['path']!r}.")
            return str(folder)
    raise UsageError(f"{modules} names no module of type Transformer.")


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything that decides which ids a fast tokenizer gives a text, hex."""
    if not tokenizer.is_fast:
        raise UsageError(f"{type(tokenizer).__name__} is a slow tokenizer; give one with tokenizer.json.")
    text = tokenizer.backend_tokenizer.to_str() + repr(tokenizer.model_input_names)
    return text_sha256(text)


def _describe(
    arguments: EncoderArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_type: str
) -> ModelRecord:
    name = str(arguments.model_name_or_path)
    folder = Path(transformer_folder(name))
    is_folder = folder.is_dir()
    options = arguments.hub_options()
    places = {key: options[key] for key in ("revision", "cache_dir", "token")}
    computed = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_COMPUTED}
    text = json.dumps(computed, sort_keys=True, default=str)
    return ModelRecord(
        name_or_path=name,
        revision=None if is_folder else hub_commit(name, places),
        sha256=hash_weights(folder) if is_folder else None,
        model_type=model_type,
        num_parameters=model.num_parameters(),
        config_sha256=text_sha256(text),
        tokenizer_sha256=tokenizer_hash(tokenizer) if tokenizer.is_fast else None,
    )

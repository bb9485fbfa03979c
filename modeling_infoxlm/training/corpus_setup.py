"""The tokenizer and the prepared corpus of a run, made from its files when they are not there yet."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_infoxlm.data.claims import make_once
from modeling_infoxlm.data.plan import differences
from modeling_infoxlm.data.prepare import prepare
from modeling_infoxlm.data.shards import MANIFEST_NAME, Corpus
from modeling_infoxlm.data.sources import Source, parse_bitext_sources, parse_mono_sources
from modeling_infoxlm.data.tokenise import tokenizer_sha256
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.runs.files import make_folder
from modeling_infoxlm.runs.record import OutputFolderError, Run, read_record
from modeling_infoxlm.training.arguments import DataArguments, ModelArguments, PrepareArguments
from modeling_infoxlm.training.model_setup import load_tokenizer

logger = logging.getLogger(__name__)


def parse_sources(arguments: PrepareArguments) -> list[Source]:
    """All text files that the arguments name; see `infoxlm prepare --help` for the forms.

    Raises:
        DataError: If a name matches nothing, or its languages cannot be told.
    """
    return [*parse_bitext_sources(arguments.bitext_files), *parse_mono_sources(arguments.mono_files)]


def find_tokenizer(model: ModelArguments, data: DataArguments, output_dir: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is named; without one train `<output_dir>/tokenizer` from the text, once.

    Raises:
        DataError: If no tokenizer is named and there is no text to train one from.
    """
    if model.names_tokenizer:
        return load_tokenizer(model)
    folder = output_dir / "tokenizer"
    # Machines without a disk in common come here each with all their processes at once.
    make_folder(output_dir)
    make_once(folder, output_dir / "tokenizer.claim", lambda: _train_tokenizer(data, folder))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def _train_tokenizer(data: DataArguments, folder: Path) -> None:
    sources = parse_sources(data)
    if not sources:
        raise DataError(
            "a model from scratch needs a tokenizer: "
            "give --tokenizer_name, or --bitext_files to train one from."
        )
    train_tokenizer(
        sources,
        folder,
        vocab_size=data.tokenizer_vocab_size,
        max_length=data.max_seq_length,
        bitext_columns=data.columns,
    )


def open_or_prepare(arguments: DataArguments, tokenizer: PreTrainedTokenizerBase, output_dir: Path) -> Corpus:
    """Open the prepared corpus, or prepare it from the text files.

    A killed preparation goes on where it stopped.

    Raises:
        DataError: If there is neither a prepared corpus nor text, it was prepared with another tokenizer,
            or the text cannot be used.
    """
    folder = output_dir / "data" if arguments.prepared_data is None else Path(arguments.prepared_data)
    sources = parse_sources(arguments)
    if not sources:
        if not (folder / MANIFEST_NAME).is_file():
            raise DataError(
                "no text: give --bitext_files and --mono_files, or the folder of an earlier "
                f"`infoxlm prepare` as --prepared_data ({folder} holds no {MANIFEST_NAME})."
            )
        corpus = Corpus.open(folder)
        _check_tokenizer(corpus, tokenizer)
        return corpus
    return prepare(
        sources,
        tokenizer=tokenizer,
        output_dir=folder,
        settings=arguments,
        num_workers=num_workers(arguments, sources),
    )


def check_corpus(run: Run, corpus: Corpus) -> None:
    """Check that a run which goes on reads the text that it has read so far; its record is of its last start.

    Raises:
        OutputFolderError: If text, tokenizer or settings of the corpus are others.
    """
    found = differences(read_record(run.folder).get("corpus", corpus.manifest), corpus.manifest)
    if found:
        raise OutputFolderError(
            f"{run.folder} was trained on another corpus than {corpus.folder} is now: {'; '.join(found)}. "
            "Prepare that one again, or give another --output_dir."
        )


def num_workers(arguments: PrepareArguments, sources: Sequence[Source]) -> int:
    """Processes that prepare: as many as asked for, else one a core, never more than files."""
    return min(len(sources), arguments.preprocessing_num_workers or os.cpu_count() or 1)


def _check_tokenizer(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    known = corpus.manifest["tokenizer"]
    if tokenizer_sha256(tokenizer) != known["sha256"]:
        raise DataError(
            f"{corpus.folder} was prepared with tokenizer "
            f"{known['name']!r} ({known['vocab_size']:,} tokens), not with "
            f"{tokenizer.name_or_path!r} ({len(tokenizer):,} tokens); "
            "give that one, or prepare the text anew."
        )

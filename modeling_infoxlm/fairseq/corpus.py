"""`infoxlm convert-fairseq-data`: token files of the released code become a corpus that training reads.

    infoxlm convert-fairseq-data data --tokenizer_name xlm-roberta-base --output_dir corpus
        --mono sw=mlm/sw/train.0 ur=mlm/ur/train.0 --bitext en-sw=tlm/en-sw/train.0

A file is named without its suffix, `.bin` or `.idx` (fairseq's `mmap` layout), from the folder on that comes
first. The corpus has the layout of `infoxlm prepare`, shards and a manifest: give it as `--prepared_data`. A
bitext serves TLM and XlCo, so one of the two files of a pair is enough.

What the released tools left odd is mended and counted: see `items.py`.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_infoxlm.config_file import parse_args_with_config
from modeling_infoxlm.data.plan import PrepareSettings, special_tokens, tokenizer_sha256
from modeling_infoxlm.data.shards import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Corpus,
    TokenStoreWriter,
)
from modeling_infoxlm.data.sources import check_language, check_pair
from modeling_infoxlm.fairseq.items import (
    BitextKind,
    Sentences,
    blocks,
    find_kind,
    is_mirrored,
    pairs,
    take_apart,
)
from modeling_infoxlm.fairseq.mmap import IndexedItems
from modeling_infoxlm.fairseq.vocabulary import open_tokenizer
from modeling_infoxlm.hub.whole_folder import whole_folder
from modeling_infoxlm.process import UsageError, usage_errors
from modeling_infoxlm.provenance import file_sha256, write_json


@dataclass
class ConvertDataArguments:
    """Token files of fairseq and the corpus that is made of them."""

    _argument_group_name = "convert-fairseq-data"

    source_dir: str = field(default=".", metadata={"help": "Folder that holds the files."})
    output_dir: str = field(default="", metadata={"help": "Folder of the corpus."})
    tokenizer_name: str = field(
        default="", metadata={"help": "Tokenizer that made the files: a folder or a Hub name."}
    )
    mono: list[str] = field(
        default_factory=list, metadata={"help": "Blocks of text: LANGUAGE=FILE, such as sw=mlm/train.0."}
    )
    bitext: list[str] = field(
        default_factory=list, metadata={"help": "Translated text: PAIR=FILE, such as en-sw=tlm/train.0."}
    )
    kind: Literal["auto", "tlm", "xlco"] = field(
        default="auto", metadata={"help": "What bitext files are made for; auto looks into them."}
    )
    max_seq_length: int = field(
        default=512, metadata={"help": "Longest block in tokens, special tokens included."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the folder if it holds a corpus."}
    )


@dataclass(frozen=True)
class TokenFile:
    """One file to convert.

    Attributes:
        group: `mono` or `bitext`.
        name: Language or pair, checked: it becomes a folder name.
        prefix: Path without `.bin` and `.idx`.
    """

    group: Literal["mono", "bitext"]
    name: str
    prefix: Path

    def describe(self) -> str:
        """As it was typed."""
        return f"{self.name}={self.prefix}"


def convert_fairseq_data_command(argv: list[str]) -> None:
    """Convert token files of the released code: `infoxlm convert-fairseq-data`."""
    if argv and not argv[0].startswith("-"):
        argv = ["--source_dir", *argv]
    (arguments,) = parse_args_with_config((ConvertDataArguments,), argv)
    for name in ("output_dir", "tokenizer_name"):
        if not getattr(arguments, name):
            raise UsageError(f"infoxlm convert-fairseq-data needs --{name}.")
    print("\n".join(convert_fairseq_data(arguments)))


def convert_fairseq_data(arguments: ConvertDataArguments) -> list[str]:
    """Convert token files; the corpus appears whole or not at all.

    Returns:
        What was kept, mended and dropped, as lines to print.

    Raises:
        UsageError: If a file is missing, damaged or of another kind, or a name is no language or pair.
    """
    with usage_errors():
        files = list_files(arguments)
        settings = PrepareSettings(max_length=arguments.max_seq_length)
    tokenizer = open_tokenizer(arguments.tokenizer_name)
    overwrite = arguments.overwrite_output_dir
    ours = (MANIFEST_NAME, "mono/*", "bitext/*", "heldout/*")
    with whole_folder(arguments.output_dir, overwrite=overwrite, marker=MANIFEST_NAME, ours=ours) as folder:
        converter = Converter(folder, tokenizer, settings, arguments.kind)
        for file in files:
            converter.add(file)
        write_json(folder / MANIFEST_NAME, converter.manifest())
        with usage_errors():
            Corpus.open(folder)  # maps every shard: what training cannot open is not published
    return [f"{arguments.output_dir}:", *converter.lines]


def list_files(arguments: ConvertDataArguments) -> list[TokenFile]:
    """The files that the arguments name.

    Raises:
        UsageError: If there is none, one comes twice, or one lies outside the folder.
        DataError: If a name is no language or pair.
    """
    folder = os.path.abspath(arguments.source_dir)
    files = []
    for spec in arguments.mono:
        name, prefix = _split_spec(spec, folder, "sw=mlm/train.0")
        files.append(TokenFile("mono", check_language(name), prefix))
    for spec in arguments.bitext:
        name, prefix = _split_spec(spec, folder, "en-sw=tlm/train.0")
        files.append(TokenFile("bitext", "-".join(check_pair(name)), prefix))
    if not files:
        raise UsageError("nothing to convert: give --mono LANGUAGE=FILE, --bitext PAIR=FILE, or both.")
    twice = [file for file, count in Counter(files).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0].describe()} is given twice.")
    return files


def _split_spec(spec: str, folder: str, example: str) -> tuple[str, Path]:
    name, equals, place = spec.partition("=")
    if not equals or not place:
        raise UsageError(f"{spec!r} does not say language and file; expected such as {example}.")
    path = Path(os.path.abspath(os.path.join(folder, place)))
    if not path.is_relative_to(folder) or path == Path(folder):
        raise UsageError(f"{spec!r} lies outside {folder}; give the folder that holds all files first.")
    return name, path.with_suffix("") if path.suffix in (".bin", ".idx") else path


class Converter:
    """Writes shards and remembers what the manifest says of them.

    Args:
        folder: Where the corpus is written.
        tokenizer: The tokenizer of the files.
        settings: `max_length` and the longest side that follows from it; text was filtered by other tools.
        kind: What bitext files are made for; `"auto"` finds out.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        settings: PrepareSettings,
        kind: Literal["auto", "tlm", "xlco"],
    ) -> None:
        self.lines: list[str] = []
        self._folder, self._tokenizer, self._settings, self._kind = folder, tokenizer, settings, kind
        with usage_errors():
            self._special = special_tokens(tokenizer)
        self._sources: list[dict[str, Any]] = []
        self._entries: dict[str, dict[str, dict[str, Any]]] = {"mono": {}, "bitext": {}}

    def add(self, file: TokenFile) -> None:
        """Convert one file.

        Raises:
            UsageError: If it is missing, damaged, of another kind, or nothing of it can be used.
        """
        items = IndexedItems(file.prefix, vocab_size=self._special.vocab_size)
        records = [_file_record(path) for path in items.files]
        content = re.sub(r"[^A-Za-z0-9_.-]+", "_", file.prefix.name)[:80]
        shard = f"{file.group}/{file.name}/{content}-{records[0]['sha256'][:16]}"
        earlier = self._entries[file.group].get(file.name)
        if earlier is not None and shard in earlier["shards"]:
            raise UsageError(f"{file.describe()} has the content of an earlier file; give it once.")
        mended: Counter[str] = Counter()
        entry, what = (self._mono if file.group == "mono" else self._bitext)(file, items, shard, mended)
        if not entry["num_examples"]:
            raise UsageError(f"{file.describe()}: nothing can be used; dropped: {_listed(entry['dropped'])}.")
        self._sources.append({"kind": file.group, "languages": _languages(file), "files": records})
        self._entries[file.group][file.name] = entry if earlier is None else _sum(earlier, entry)
        self.lines += _describe(file, what, entry, mended)

    def manifest(self) -> dict[str, Any]:
        """The manifest of the corpus, as `infoxlm prepare` writes it."""
        settings = self._settings
        return {
            "format_version": FORMAT_VERSION,
            "tokenizer": {
                "name": self._tokenizer.name_or_path,
                "sha256": tokenizer_sha256(self._tokenizer),
                "vocab_size": self._special.vocab_size,
                "special": asdict(self._special),
            },
            # Only what shaped these shards: fairseq's tools chose and cut the text.
            "settings": {
                "max_length": settings.max_length,
                "max_side_length": settings.longest_side,
                "converted_from": "fairseq",
            },
            "sources": self._sources,
            **self._entries,
            "heldout": {},
        }

    def _mono(
        self, file: TokenFile, items: IndexedItems, shard: str, mended: Counter[str]
    ) -> tuple[dict[str, Any], str]:
        dropped: Counter[str] = Counter()
        num_sentences = longest = 0
        with TokenStoreWriter(self._folder / shard) as writer:
            for sentences in self._sentences(file, items, len(items), mended):
                rows, count = blocks(sentences, self._special, self._settings.max_length, dropped)
                writer.extend(rows)
                num_sentences += count
                longest = int(rows.lengths.max(initial=longest))
        return _entry(len(writer), num_sentences, writer.num_tokens, longest, dropped, shard), "blocks"

    def _bitext(
        self, file: TokenFile, items: IndexedItems, shard: str, mended: Counter[str]
    ) -> tuple[dict[str, Any], str]:
        kind = find_kind(items, self._special, file.describe()) if self._kind == "auto" else self._kind
        dropped: Counter[str] = Counter()
        last = self._items_to_read(file, items, kind, dropped)
        longest = 0
        with ExitStack() as stack:
            writers = [
                stack.enter_context(TokenStoreWriter(self._folder / f"{shard}.{side}"))
                for side in ("source", "target")
            ]
            for sentences in self._sentences(file, items, last, mended):
                sides = pairs(sentences, kind, self._settings.longest_side, dropped)
                for writer, side in zip(writers, sides, strict=True):
                    writer.extend(side)
                longest = int((sides[0].lengths + sides[1].lengths).max(initial=longest))
        count, num_tokens = len(writers[0]), sum(writer.num_tokens for writer in writers)
        return _entry(count, 2 * count, num_tokens, longest, dropped, shard), f"{kind} pairs"

    def _items_to_read(
        self, file: TokenFile, items: IndexedItems, kind: BitextKind, dropped: Counter[str]
    ) -> int:
        """All items; of TLM files that hold every pair in both orders, the half with the source first."""
        if kind == "xlco" and len(items) % 2:
            raise UsageError(
                f"{file.describe()} has {len(items):,} items; an XlCo file alternates source and target, "
                "so it has an even number."
            )
        if kind == "xlco" or not is_mirrored(items, self._special, file.describe()):
            return len(items)
        # Training draws which side comes first itself.
        dropped["other_order"] += len(items) // 2
        return len(items) // 2

    def _sentences(
        self, file: TokenFile, items: IndexedItems, last: int, mended: Counter[str]
    ) -> Iterator[Sentences]:
        """Items taken apart, some thousands at a time."""
        with tqdm(total=last, desc=file.name, unit=" items", delay=2, leave=False) as bar:
            for first, rows in items.batches(last):
                sentences = take_apart(rows, self._special, first, file.describe())
                mended.update(sentences.mended())
                yield sentences
                bar.update(len(rows))


def _entry(
    num_examples: int, num_sentences: int, num_tokens: int, longest: int, dropped: Counter[str], shard: str
) -> dict[str, Any]:
    return {
        "num_examples": num_examples,
        "num_sentences": num_sentences,
        "num_tokens": num_tokens,
        "max_length": longest,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "shards": [shard],
    }


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of two files of one language or pair together."""
    totals = {name: one[name] + other[name] for name in ("num_examples", "num_sentences", "num_tokens")}
    return {
        **totals,
        "max_length": max(one["max_length"], other["max_length"]),
        "dropped": dict(sorted((Counter(one["dropped"]) + Counter(other["dropped"])).items())),
        "shards": [*one["shards"], *other["shards"]],
    }


def _languages(file: TokenFile) -> list[str]:
    return [file.name] if file.group == "mono" else file.name.split("-")


def _file_record(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "path": str(path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": file_sha256(path),
    }


def _describe(file: TokenFile, what: str, entry: Mapping[str, Any], mended: Counter[str]) -> list[str]:
    lines = [
        f"  {file.describe()}: {entry['num_examples']:,} {what}, {entry['num_sentences']:,} sentences, "
        f"{entry['num_tokens']:,} tokens"
    ]
    if +mended:
        lines.append(f"    mended: {_listed(+mended)}")
    if entry["dropped"]:
        lines.append(f"    dropped: {_listed(entry['dropped'])}")
    return lines


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in counts.items()) or "nothing"

"""Word alignment from the hidden states of any layer of any encoder: `infoxlm align-words`.

    infoxlm align-words --model_name_or_path xlm-roberta-base --source_file test.de --target_file test.en \
        --gold_file alignv2.txt --output_dir out

Three methods: `ot`, the optimal-transport aligner of XLM-Align (Chi et al., ACL 2021), which encodes a pair
as one sequence `<s> source </s> target </s>`; `argmax` and `itermax` of SimAlign (Jalili Sabet et al.,
Findings of EMNLP 2020), which encode each sentence by itself. `--context` overrides either.

A line is a sentence, its words are divided by blanks (not by U+00A0: gold files count words as GIZA does).
Each word is cut into sub-words by itself, and two words are aligned if any of their sub-words are.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Column, Table

from modeling_infoxlm.evaluation.alignment.aligners import SINKHORN_ITERATIONS, Method
from modeling_infoxlm.evaluation.alignment.gold_files import (
    GoldAlignment,
    PairFiles,
    find_pairs,
    read_gold,
    read_words,
)
from modeling_infoxlm.evaluation.alignment.scoring import METRICS, Link, alignment_scores, estimate_rates
from modeling_infoxlm.evaluation.alignment.word_aligner import Context, WordAligner
from modeling_infoxlm.evaluation.encoders import EncoderArguments, load_encoder
from modeling_infoxlm.evaluation.results import DatasetRecord, TaskResult, summarise, write_result
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import write_text
from modeling_infoxlm.runs.flags import flag
from modeling_infoxlm.runs.process import configure_process

logger = logging.getLogger(__name__)

TASK = "word_alignment"


@dataclass
class AlignWordsArguments:
    """What is aligned, how, and where the links go."""

    _argument_group_name = "word alignment"
    source_file: str | None = flag(None, "Sentences, one a line, words divided by blanks.")
    target_file: str | None = flag(None, "Their translations, line by line.")
    pairs_file: str | None = flag(None, "Instead of both: one file of `source ||| target` lines.")
    gold_file: str | None = flag(
        None,
        "Links drawn by people: `1-1 2-3 4p5` for each sentence (p: possible), or a line "
        "`sentence source target S|P` for each link. Unset: align only.",
    )
    test_dir: str | None = flag(
        None,
        "Instead of all of these: a folder with a folder for each pair, xx-yy, that holds "
        "test.xx, test.yy and alignv2.txt or gold.txt (the layout of XLM-Align's test sets).",
    )
    gold_index_base: Literal["0", "1"] | None = flag(
        None,
        "Number of the first word in the gold. Unset: 1 in the second form, told by the links in the first.",
    )
    pair: str | None = flag(None, "Name of the language pair, such as de-en. Unset: by the files' names.")
    dataset_name: str | None = flag(None, "Name of the test set in the result. Unset: the folder's name.")
    method: Method = flag(
        "ot",
        "ot: optimal transport (XLM-Align); argmax: mutual argmax of cosines, itermax: repeated "
        "for words left over (both SimAlign).",
    )
    context: Context | None = flag(
        None, "Encode both sentences as one sequence, or each alone. Unset: pair for ot, else single."
    )
    layer: int | None = flag(
        None,
        "Layer whose links are written and whose score heads the result; 0 is the embedding "
        "output. Unset: two thirds up, 8 of 12.",
    )
    sinkhorn_iter: int = flag(SINKHORN_ITERATIONS, "Rounds of scaling in the method ot.")
    output_dir: str = flag("word_alignment", "Folder of the links and the result.")
    overwrite_output_dir: bool = flag(False, "Replace the links and results that are in output_dir.")

    def pair_files(self) -> list[PairFiles]:
        """The files of each pair; a `UsageError` if the flags name no text or contradict each other."""
        one, two = self.pairs_file is not None, bool(self.source_file and self.target_file)
        if [one, two, self.test_dir is not None].count(True) != 1:
            raise UsageError(
                "give the sentences one way: --source_file and --target_file, --pairs_file, or --test_dir."
            )
        if self.test_dir is not None:
            return find_pairs(Path(self.test_dir))
        texts = tuple(Path(name) for name in (self.pairs_file, self.source_file, self.target_file) if name)
        name = self.pair or "-".join(path.suffix[1:] or path.stem for path in texts)
        return [PairFiles(name, texts, Path(self.gold_file) if self.gold_file else None)]

    def check_output(self) -> None:
        """Refuse to replace links or a result unless asked to, before anything is computed."""
        found = sorted(Path(self.output_dir).glob(f"{TASK}[-_]*"))
        if found and not self.overwrite_output_dir:
            raise UsageError(f"{found[0]} exists; give another --output_dir, or --overwrite_output_dir true.")


def run(argv: list[str]) -> None:
    """Align the words of translations and compare with gold alignments."""
    encoder_arguments, arguments = parse_args_with_config(
        (EncoderArguments, AlignWordsArguments), argv, program="infoxlm align-words", about=__doc__
    )
    arguments.check_output()
    configure_process()
    pairs = arguments.pair_files()
    texts = [read_words(files) for files in pairs]
    gold = {
        files.name: _read_gold(files.gold, *words, arguments.gold_index_base)
        for files, words in zip(pairs, texts, strict=True)
        if files.gold is not None
    }
    encoder = load_encoder(encoder_arguments)
    default = round(encoder.num_layers * 2 / 3)
    layer = encoder.check_layer(default if arguments.layer is None else arguments.layer)
    aligner = WordAligner(
        encoder,
        method=arguments.method,
        layers=None if gold else [layer],  # without gold nothing is asked of the others
        context=arguments.context,
        iterations=arguments.sinkhorn_iter,
    )
    links = [aligner.align(*words, progress=True) for words in texts]
    if aligner.num_cut:
        message = "%d pairs are longer than the model's %d tokens; the words past them stay unaligned."
        logger.warning(message, aligner.num_cut, encoder.max_length)
    output_dir = Path(arguments.output_dir)
    for files, found in zip(pairs, links, strict=True):
        path = output_dir / f"{TASK}-{files.name}.txt"
        chosen = (sorted(by_layer[aligner.layers.index(layer)]) for by_layer in found)
        lines = (" ".join(f"{source}-{target}" for source, target in one) for one in chosen)
        write_text(path, "".join(f"{line}\n" for line in lines))  # `0-0 1-2`: Pharaoh's format
        print(f"{path}: links of {len(found):,} sentences at layer {layer}.")
    if gold:
        folder = Path(arguments.test_dir or arguments.gold_file or ".").resolve()
        name = arguments.dataset_name or (folder.name if arguments.test_dir else folder.parent.name)
        paths = [path for files in pairs for path in (*files.texts, files.gold) if path is not None]
        found_of = {files.name: found for files, found in zip(pairs, links, strict=True)}
        result = _score(gold, found_of, aligner, layer=layer, dataset=DatasetRecord.of_files(name, paths))
        print_layers(result)
        print(write_result(output_dir, result, command=["infoxlm", "align-words", *argv]))


def _read_gold(
    path: Path, sources: Sequence[list[str]], targets: Sequence[list[str]], index_base: str | None
) -> list[GoldAlignment | None]:
    lengths = [(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
    gold = read_gold(path, lengths, index_base=None if index_base is None else int(index_base))
    if not any(one.possible for one in gold if one is not None):
        raise UsageError(f"{path} holds no link.")
    return gold


def _score(
    gold: Mapping[str, list[GoldAlignment | None]],
    links: Mapping[str, list[list[set[Link]]]],
    aligner: WordAligner,
    *,
    layer: int,
    dataset: DatasetRecord,
) -> TaskResult:
    """Compare the links of every layer with the gold of every pair."""
    layers = {}
    for pair, drawn in gold.items():
        both = [(found, one) for found, one in zip(links[pair], drawn, strict=True) if one is not None]
        layers[pair] = {
            str(number): estimate_rates(
                [alignment_scores(found[k], one.sure, one.possible) for found, one in both]
            )
            for k, number in enumerate(aligner.layers)
        }
    scores = {name: by_layer[str(layer)] for name, by_layer in layers.items()}
    return TaskResult(
        task=TASK,
        metric="aer",
        unit="percent",
        dataset=dataset,
        model=aligner.encoder.record,
        settings={
            "method": aligner.method,
            "context": aligner.context,
            "layer": layer,
            "sinkhorn_iter": aligner.iterations if aligner.method == "ot" else None,
            "bf16": aligner.encoder.bf16,
        },
        scores=scores,
        summary=summarise({name: rates["aer"].value for name, rates in scores.items()}),
        details={
            "layers": layers,
            "sentences_without_gold": {pair: drawn.count(None) for pair, drawn in gold.items()},
            "pairs_cut": aligner.num_cut,
        },
    )


def print_layers(result: TaskResult, console: Console | None = None) -> None:
    """Print the scores of every layer, a table for each pair."""
    for name, by_layer in result.details["layers"].items():
        columns = (Column(heading, justify="right") for heading in ("layer", *METRICS))
        table = Table(*columns, title=f"{name}: {result.settings['method']}, percent", title_justify="left")
        for layer, rates in by_layer.items():
            mark = "*" if layer == str(result.settings["layer"]) else ""
            table.add_row(mark + layer, *(f"{rates[metric].value:.1f}" for metric in METRICS))
        (console or Console(width=120)).print(table)

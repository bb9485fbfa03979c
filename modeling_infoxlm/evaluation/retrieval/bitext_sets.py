"""Test sets of aligned sentences: which files and datasets are one, and in which languages.

    tatoeba/de-en.de  tatoeba/de-en.en  tatoeba.deu-eng.deu ...            Tatoeba, as in LASER
    newstest2019-ref.deu.txt  newstest2019-src.eng.txt                      NTREX-128
    deu_Latn.devtest  eng_Latn.devtest                                      FLORES-200
    de-en.tsv  x.de,x.en  de-en=pairs.jsonl  hub:NAME                       as for pre-training
    mteb/tatoeba-bitext-mining                                              a dataset with a config per pair

Languages go by their short codes in results, whatever the files call them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from modeling_infoxlm.data.readers import hub_revision, read_rows
from modeling_infoxlm.data.sources import HUB_PREFIX, Source, parse_bitext_sources
from modeling_infoxlm.evaluation.results import DatasetRecord
from modeling_infoxlm.hub.benchmarks import LANGUAGES
from modeling_infoxlm.runs.errors import DataError, UsageError

# The 14 languages of the paper's tables (arXiv 2007.07834) and the 36 of XTREME (arXiv 2003.11080).
PAPER_LANGUAGES, XTREME_LANGUAGES = LANGUAGES["tatoeba"], LANGUAGES["tatoeba_xtreme"]
ENGLISH = "en"

_SHORT_CODES = {
    "afr": "af", "ara": "ar", "arb": "ar", "bul": "bg", "ben": "bn", "deu": "de", "ell": "el", "eng": "en",
    "spa": "es", "est": "et", "eus": "eu", "fas": "fa", "pes": "fa", "fin": "fi", "fra": "fr", "heb": "he",
    "hin": "hi", "hun": "hu", "ind": "id", "ita": "it", "jpn": "ja", "jav": "jv", "kat": "ka", "kaz": "kk",
    "kor": "ko", "mal": "ml", "mar": "mr", "nld": "nl", "por": "pt", "rus": "ru", "swa": "sw", "swh": "sw",
    "tam": "ta", "tel": "te", "tha": "th", "tgl": "tl", "fil": "tl", "tur": "tr", "urd": "ur", "vie": "vi",
    "cmn": "zh", "zho_CN": "zh", "zho_Hans": "zh",
}  # fmt: skip
_SECOND_SCRIPTS = ("arb_Latn",)  # of FLORES, beside the usual script of the language

_TATOEBA_FILE = re.compile(r"(.*\.)?([A-Za-z_]{2,8})-([A-Za-z_]{2,8})\.([A-Za-z_]{2,8})")
_NTREX_SOURCE = "newstest2019-src.eng.txt"
_NTREX_FILE = re.compile(r"newstest2019-ref\.(.+)\.txt")
_FLORES_FILE = re.compile(r"([a-z]{3}_[A-Z][a-z]{3})\.(dev|devtest)")
_PAIR_COLUMNS = ("sentence1", "sentence2")


@dataclass(frozen=True)
class BitextSet:
    """Aligned sentences of one pair of languages."""

    # key in results: the language beside English, such as `de`; the pair, such as `de-fr`, where neither side
    # is English
    language: str
    pair: str  # source and target language, joined by a hyphen. English is the target.
    source: Sequence[str]  # N sentences
    target: Sequence[str]  # their translations, (N,)


@dataclass(frozen=True)
class _Candidate:
    """A set that was found but not read yet."""

    languages: tuple[str, str]  # short codes of both sides
    read: Callable[[], Iterable[tuple[str, str]]]  # its pairs
    files: tuple[Path, ...] = ()  # where they lie
    # commit of each part that lies on the Hub, by its location
    commits: Mapping[str, str] = field(default_factory=dict)

    @property
    def language(self) -> str:
        source, target = self.languages
        if ENGLISH in self.languages:
            return source if target == ENGLISH else target
        return f"{source}-{target}"

    def load(self) -> BitextSet:
        # A blank line is no pair: it would be found beside every other one.
        pairs = [pair for pair in self.read() if any(side.strip() for side in pair)]
        source, target = ([pair[side] for pair in pairs] for side in (0, 1))
        if self.languages[0] == ENGLISH:
            return BitextSet(self.language, f"{self.language}-{ENGLISH}", target, source)
        return BitextSet(self.language, "-".join(self.languages), source, target)


def refuse_bad_line(error: DataError) -> None:
    """Stop at a line that cannot be used: without it the lines would not be aligned."""
    raise error


def short_code(code: str) -> str:
    """The code that results use: `deu`, `deu_Latn` -> `de`; `zho-CN` -> `zh`; one that is not known stays."""
    code = code.replace("-", "_")
    base, _, script = code.partition("_")
    if len(script) == 4 and code not in _SECOND_SCRIPTS:
        code = base if base in _SHORT_CODES else code
    return _SHORT_CODES.get(code, code)


def load_folder(
    folder: str | Path, languages: Sequence[str] | None = None
) -> tuple[list[BitextSet], DatasetRecord]:
    """Read the test sets in a folder in the layout of Tatoeba, NTREX or FLORES, or of bitext for training.

    Raises:
        UsageError: If the folder or a language is missing, or the two sides of a set differ in length.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}.")
    layouts = (find(folder) for find in (_tatoeba_files, _ntrex_files, _flores_files))
    sources = next(filter(None, layouts), None) or parse_bitext_sources([str(folder)])
    return _load(map(_candidate, sources), languages, str(folder), folder.name)


def load_files(
    specs: Sequence[str], languages: Sequence[str] | None = None
) -> tuple[list[BitextSet], DatasetRecord]:
    """Read test sets named as bitext is for pre-training: `x.de,x.en` (plain files), `de-en=pairs.tsv`."""
    name = " ".join(specs)
    return _load(map(_candidate, parse_bitext_sources(specs)), languages, name, name)


def load_dataset_pairs(
    name: str,
    languages: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[list[BitextSet], DatasetRecord]:
    """Read the split `test` of a dataset with a config for each pair, columns `sentence1` and `sentence2`.

    Such as `mteb/tatoeba-bitext-mining`, whose configs are `deu-eng`, ...; or a folder that `datasets` loads.

    Raises:
        UsageError: If it cannot be loaded, or a language is missing.
    """
    import datasets

    is_folder = Path(name).is_dir()
    commit = None if is_folder else hub_revision(HUB_PREFIX + name, revision=revision, token=token)
    options = {"revision": commit, "token": token}
    try:
        configs = datasets.get_dataset_config_names(name, **options)
    except (OSError, ValueError) as error:
        raise UsageError(f"dataset {name} cannot be loaded: {error}") from error
    candidates = [
        _Candidate(_short_codes(*config.split("-")), partial(_read_config, name, config, options))
        for config in configs
        if config.count("-") == 1
    ]
    sets, _ = _load(candidates, languages, f"dataset {name}", name)
    files = [path for path in Path(name).rglob("*") if path.is_file()] if is_folder else []
    hashes = DatasetRecord.of_files(name, files).files
    return sets, DatasetRecord(name, hashes, commit, None if is_folder else name)


def _load(
    candidates: Iterable[_Candidate], languages: Sequence[str] | None, place: str, name: str
) -> tuple[list[BitextSet], DatasetRecord]:
    """Read the sets of the languages asked for, in the order of their codes."""
    found: dict[str, _Candidate] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.language):
        if candidate.language in found:
            raise UsageError(f"{place} has two sets of {candidate.language}; give one of them.")
        found[candidate.language] = candidate
    if not found:
        raise UsageError(f"{place} holds no test set; --help shows the layouts that are read.")
    wanted = dict.fromkeys(code if code in found else short_code(code) for code in languages or found)
    missing = [language for language in wanted if language not in found]
    if missing:
        raise UsageError(f"{place} has no set of {', '.join(missing)}; it has {', '.join(found)}.")
    chosen = [found[language] for language in wanted]
    commits = {location: commit for one in chosen for location, commit in one.commits.items()}
    files = [path for candidate in chosen for path in candidate.files]
    return [candidate.load() for candidate in chosen], DatasetRecord.of_files(name, files, commits)


def _short_codes(source: str, target: str) -> tuple[str, str]:
    return short_code(source), short_code(target)


def _aligned(codes: tuple[str, str], *paths: Path) -> Source:
    """Two files, line by line, whose sides are named by any codes."""
    return Source(_short_codes(*codes), tuple(map(str, paths)))


def _tatoeba_files(folder: Path) -> list[Source]:
    """`[prefix.]xx-yy.xx` and `[prefix.]xx-yy.yy` are the two sides of a set."""
    sides: dict[str, tuple[str, str]] = {}
    for path in folder.iterdir():
        match = _TATOEBA_FILE.fullmatch(path.name)
        if match and match[4] in (match[2], match[3]) and match[2] != match[3]:
            sides[path.name.removesuffix(match[4])] = (match[2], match[3])
    return [_aligned(codes, *(folder / (stem + code) for code in codes)) for stem, codes in sides.items()]


def _ntrex_files(folder: Path) -> list[Source]:
    """Translations of one English file."""
    matches = [match for path in folder.iterdir() if (match := _NTREX_FILE.fullmatch(path.name))]
    english = folder / _NTREX_SOURCE
    # The English varieties of NTREX are no other language.
    others = [match for match in matches if match[1].split("-")[0] != "eng"]
    return [_aligned((m[1], ENGLISH), folder / m[0], english) for m in others] if english.is_file() else []


def _flores_files(folder: Path) -> list[Source]:
    """Files of all languages, English among them, of one split."""
    matches = [match for path in folder.iterdir() if (match := _FLORES_FILE.fullmatch(path.name))]
    splits = sorted({match[2] for match in matches})
    if len(splits) > 1:
        raise UsageError(f"{folder} holds the splits {' and '.join(splits)}; give a folder with one of them.")
    english = [folder / match[0] for match in matches if match[1] == "eng_Latn"]
    if matches and not english:
        raise UsageError(f"{folder} has no eng_Latn.{splits[0]}, the English side of every set.")
    others = (match for match in matches if match[1] != "eng_Latn")
    return [_aligned((match[1], ENGLISH), folder / match[0], *english) for match in others]


def _candidate(source: Source) -> _Candidate:
    """A set in any form that is read for pre-training."""
    on_hub = source.is_hub
    commits = {location: hub_revision(location) for location in source.locations if on_hub}
    files = () if on_hub else tuple(Path(location) for location in source.locations)

    def read() -> Iterable[tuple[str, str]]:
        for path in files:
            if not path.is_file():
                raise UsageError(f"{source.name}: {path} is missing, one side of the set.")
        revision = next(iter(commits.values()), None)
        rows = read_rows(source, revision=revision, on_bad_line=refuse_bad_line)
        return ((first, second) for first, second in rows)

    return _Candidate(_short_codes(*source.languages), read, files, commits)


def _read_config(name: str, config: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    import datasets

    try:
        rows = list(datasets.load_dataset(name, config, split="test", streaming=True, **options))
    except (OSError, ValueError) as error:
        raise UsageError(f"dataset {name}, {config} cannot be loaded: {error}") from error
    for number, row in enumerate(rows, 1):
        source, target = (row.get(column) for column in _PAIR_COLUMNS)
        if not isinstance(source, str) or not isinstance(target, str):
            raise UsageError(
                f"dataset {name}, {config}, row {number:,}: expected text in the columns "
                f"{' and '.join(_PAIR_COLUMNS)}, "
                f"found {', '.join(f'{key}: {type(value).__name__}' for key, value in row.items())}."
            )
        yield source, target

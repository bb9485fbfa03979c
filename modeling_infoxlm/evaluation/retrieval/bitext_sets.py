"""Test sets of aligned sentences: which files and datasets are one, and in which languages.

    tatoeba/de-en.de  tatoeba/de-en.en  tatoeba.deu-eng.deu ...            Tatoeba, as in LASER
    newstest2019-ref.deu.txt  newstest2019-src.eng.txt                      NTREX-128
    deu_Latn.devtest  eng_Latn.devtest                                      FLORES-200
    de-en.tsv  x.de,x.en  de-en=pairs.jsonl  hub:NAME                       as for pre-training
    mteb/tatoeba-bitext-mining                                              a dataset with a config per pair

Languages go by their short codes in results, whatever the files call them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_infoxlm.data.readers import hub_revision, read_pairs
from modeling_infoxlm.data.sources import HUB_PREFIX, BitextSource, is_hub, parse_bitext_sources
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
    """Aligned sentences of one pair of languages.

    Attributes:
        language: Key in results: the language beside English, such as `de`; the pair, such as `de-fr`, where
            neither side is English.
        pair: Source and target language, joined by a hyphen. English is the target.
        source: N sentences.
        target: Their translations, (N,).
    """

    language: str
    pair: str
    source: Sequence[str]
    target: Sequence[str]


@dataclass(frozen=True)
class _Candidate:
    """A set that was found but not read yet."""

    languages: tuple[str, str]
    read: Callable[[], tuple[Sequence[str], Sequence[str]]]
    files: tuple[Path, ...] = ()
    commits: Mapping[str, str] = field(default_factory=dict)

    @property
    def language(self) -> str:
        source, target = self.languages
        if ENGLISH in self.languages:
            return source if target == ENGLISH else target
        return f"{source}-{target}"

    def load(self) -> BitextSet:
        source, target = self.read()
        languages = self.languages
        if languages[0] == ENGLISH:
            source, target, languages = target, source, (languages[1], ENGLISH)
        return BitextSet(self.language, "-".join(languages), source, target)


def refuse_bad_line(error: DataError) -> None:
    """Stop at a line that cannot be used: without it the lines would not be aligned.

    Raises:
        DataError: Always.
    """
    raise error


def short_code(code: str) -> str:
    """The code that results use: `deu`, `deu_Latn` -> `de`; `zho-CN` -> `zh`; one that is not known stays."""
    code = code.replace("-", "_")
    base, _, script = code.partition("_")
    if len(script) == 4 and code not in _SECOND_SCRIPTS:
        code = base if base in _SHORT_CODES else code
    return _SHORT_CODES.get(code, code)


# ---------------------------------------------------------------------------------------------------- loading


def load_folder(
    folder: str | Path, languages: Sequence[str] | None = None
) -> tuple[list[BitextSet], DatasetRecord]:
    """Read the test sets in a folder in the layout of Tatoeba, NTREX or FLORES, or of bitext for training.

    Args:
        folder: Where they lie.
        languages: Which of them; None takes all.

    Raises:
        UsageError: If the folder or a language is missing, or the two sides of a set differ in length.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}.")
    for find in (_tatoeba_files, _ntrex_files, _flores_files):
        candidates = find(folder)
        if candidates:
            break
    else:
        candidates = _from_sources(parse_bitext_sources([str(folder)]))
    return _load(candidates, languages, str(folder), folder.name)


def load_files(
    specs: Sequence[str], languages: Sequence[str] | None = None
) -> tuple[list[BitextSet], DatasetRecord]:
    """Read test sets named as bitext is for pre-training, see `parse_bitext_sources`.

    Args:
        specs: Such as `x.de,x.en` (two plain files), `de-en.tsv`, `de-en=pairs.tsv`.
        languages: Which of them; None takes all.

    Raises:
        UsageError: If one cannot be read, or a language is missing.
    """
    return _load(_from_sources(parse_bitext_sources(specs)), languages, " ".join(specs), " ".join(specs))


def load_dataset_pairs(
    name: str,
    languages: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[list[BitextSet], DatasetRecord]:
    """Read a dataset with a config for each pair and the columns `sentence1` and `sentence2`.

    Such as `mteb/tatoeba-bitext-mining`, whose configs are `deu-eng`, ...; its split `test`.

    Args:
        name: Of a dataset on the Hub, or a folder that `datasets` loads.
        languages: Which of them; None takes all.
        revision: Branch, tag or commit on the Hub; None takes the newest.
        token: Of the Hub; None is the stored one.

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
    candidates = [_from_config(name, config, options) for config in configs if config.count("-") == 1]
    sets, _ = _load(candidates, languages, f"dataset {name}", name)
    files = [path for path in Path(name).rglob("*") if path.is_file()] if is_folder else []
    hashes = DatasetRecord.of_files(name, files).files
    return sets, DatasetRecord(name, hashes, commit, None if is_folder else name)


def _load(
    candidates: Sequence[_Candidate], languages: Sequence[str] | None, place: str, name: str
) -> tuple[list[BitextSet], DatasetRecord]:
    chosen = _choose(candidates, languages, place)
    sets = [candidate.load() for candidate in chosen]
    commits = {place: commit for candidate in chosen for place, commit in candidate.commits.items()}
    files = [path for candidate in chosen for path in candidate.files]
    return sets, DatasetRecord.of_files(name, files, commits)


def _choose(
    candidates: Sequence[_Candidate], languages: Sequence[str] | None, place: str
) -> list[_Candidate]:
    """The candidates of the languages asked for, in the order of their codes."""
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
    return [found[language] for language in wanted]


# ---------------------------------------------------------------------------------------------------- layouts


def _tatoeba_files(folder: Path) -> list[_Candidate]:
    """`[prefix.]xx-yy.xx` and `[prefix.]xx-yy.yy` are the two sides of a set."""
    sides: dict[str, tuple[str, str]] = {}
    for path in folder.iterdir():
        match = _TATOEBA_FILE.fullmatch(path.name)
        if match and match[4] in (match[2], match[3]) and match[2] != match[3]:
            sides[path.name.removesuffix(match[4])] = (match[2], match[3])
    return [_aligned_files([folder / (stem + side) for side in sides[stem]], sides[stem]) for stem in sides]


def _ntrex_files(folder: Path) -> list[_Candidate]:
    """Translations of one English file."""
    if not (folder / _NTREX_SOURCE).is_file():
        return []
    matches = [(path, _NTREX_FILE.fullmatch(path.name)) for path in folder.iterdir()]
    sides = {match[1]: path for path, match in matches if match}
    return _with_english(sides, folder / _NTREX_SOURCE)


def _flores_files(folder: Path) -> list[_Candidate]:
    """Files of all languages, English among them, of one split."""
    matches = [match for path in folder.iterdir() if (match := _FLORES_FILE.fullmatch(path.name))]
    splits = sorted({match[2] for match in matches})
    if len(splits) > 1:
        raise UsageError(f"{folder} holds the splits {' and '.join(splits)}; give a folder with one of them.")
    sides = {match[1]: folder / match[0] for match in matches}
    english = sides.pop("eng_Latn", None)
    if matches and english is None:
        raise UsageError(f"{folder} has no eng_Latn.{splits[0]}, the English side of every set.")
    return _with_english(sides, english) if english else []


def _with_english(sides: dict[str, Path], english: Path) -> list[_Candidate]:
    # The English varieties of NTREX are no other language.
    others = {code: path for code, path in sides.items() if code.split("-")[0] != "eng"}
    return [_aligned_files([path, english], (code, ENGLISH)) for code, path in others.items()]


def _aligned_files(paths: Sequence[Path], codes: tuple[str, str]) -> _Candidate:
    languages = (short_code(codes[0]), short_code(codes[1]))
    return _Candidate(languages, lambda: _read_aligned(paths, languages), tuple(paths))


def _read_aligned(paths: Sequence[Path], languages: tuple[str, str]) -> tuple[list[str], list[str]]:
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{'-'.join(languages)}: {path} is missing, one side of the set.")
    source = BitextSource(*languages, (str(paths[0]), str(paths[1])))
    return _sides_of(read_pairs(source, on_bad_line=refuse_bad_line))


def _from_sources(sources: Sequence[BitextSource]) -> list[_Candidate]:
    return [_from_source(source) for source in sources]


def _from_source(source: BitextSource) -> _Candidate:
    languages = (short_code(source.source_language), short_code(source.target_language))
    files = () if is_hub(source) else tuple(Path(location) for location in source.locations)
    commits = {location: hub_revision(location) for location in source.locations} if is_hub(source) else {}
    revision = next(iter(commits.values()), None)

    def read() -> tuple[list[str], list[str]]:
        return _sides_of(read_pairs(source, revision=revision, on_bad_line=refuse_bad_line))

    return _Candidate(languages, read, files, commits)


def _from_config(name: str, config: str, options: Mapping[str, Any]) -> _Candidate:
    codes = config.split("-")
    languages = (short_code(codes[0]), short_code(codes[1]))
    return _Candidate(languages, lambda: _read_config(name, config, options))


def _read_config(name: str, config: str, options: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    import datasets

    try:
        rows = list(datasets.load_dataset(name, config, split="test", streaming=True, **options))
    except (OSError, ValueError) as error:
        raise UsageError(f"dataset {name}, {config} cannot be loaded: {error}") from error
    return _sides_of(_pair_of(row, f"dataset {name}, {config}, row {i:,}") for i, row in enumerate(rows, 1))


def _pair_of(row: Mapping[str, Any], place: str) -> tuple[str, str]:
    source, target = (row.get(column) for column in _PAIR_COLUMNS)
    if not isinstance(source, str) or not isinstance(target, str):
        raise UsageError(
            f"{place}: expected text in the columns {' and '.join(_PAIR_COLUMNS)}, "
            f"found {', '.join(f'{name}: {type(value).__name__}' for name, value in row.items())}."
        )
    return source, target


def _sides_of(pairs: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    # A blank line is no pair: it would be found beside every other one.
    aligned = [pair for pair in pairs if any(side.strip() for side in pair)]
    return [source for source, _ in aligned], [target for _, target in aligned]

"""Sources: from files as users name them to where their sentences and pairs lie, in which languages.

`parse_bitext_sources` and `parse_mono_sources` turn what is typed into sources; `readers` streams them.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from modeling_infoxlm.runs.errors import DataError, some

logger = logging.getLogger(__name__)

T = TypeVar("T")

HUB_PREFIX = "hub:"
_FORMATS = {
    ".txt": "text",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
_KNOWN_FILES = (
    f"a known file ends in {', '.join(_FORMATS)} or .LANGUAGE (one side of two files), "
    f"with or without {', '.join(_COMPRESSIONS)}"
)
# What a user writes out may be any code; what is guessed from a file name must look more like one, or
# `raw.txt` and `data.csv` would be in the languages `raw` and `csv`.
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*")
_PAIR_SIDE = re.compile(r"[A-Za-z]{2,3}(_[A-Za-z0-9]+)*")
_SUBTAG = r"(?:_[A-Z][a-z]{3}|_[A-Z]{2})"
_GUESSED = rf"[a-z]{{2}}{_SUBTAG}?|[a-z]{{3}}{_SUBTAG}"
_END = r"(?=\.|$)"
# At the beginning of a part of the name that has no two letters joined to it from before: in `en-pt-br` and
# `zh_cn` the last two are a region, not Breton or a language `cn`.
_BEGIN = r"(?<![^._-])(?<!^[A-Za-z]{2}[_-])(?<![._-][A-Za-z]{2}[_-])"
# No pairs: a language in its region, two words (`top-ten`), and a split before a language (`dev-de`).
_NO_PAIR = rf"(?!(?:zh-(?:cn|hk|mo|sg|tw)|pt-br|en-(?:gb|us)|es-mx|[a-z]{{3}}-[a-z]{{3}}){_END})"
_SIDE = rf"((?!(?:dev|val|trn|tst)(?![a-z]))[a-z]{{2,3}}{_SUBTAG}?)"
_PAIR_IN_NAME = re.compile(f"{_BEGIN}{_NO_PAIR}{_SIDE}-{_SIDE}{_END}")
_IS_NOTICE = re.compile("README|LICEN[CS]E|COPYING|NOTICE|SOURCE|CHANGELOG")  # no text is missed in them
_LANGUAGE_IN_NAME = re.compile(f"{_BEGIN}(?:{_GUESSED})$")


def check_language(code: str) -> str:
    """A language code such as `de` or `pt-BR`, with `_` between its parts: `-` separates those of a pair.

    Raises:
        DataError: If it is no language code. This also keeps `../` and the like out of folder names.
    """
    if not _LANGUAGE.fullmatch(code):
        raise DataError(
            f"{code!r} is not a language code; expected 2 or 3 letters as in de, ceb, pt_BR, zh_Hans."
        )
    return code.replace("-", "_")


def check_pair(pair: str) -> tuple[str, str]:
    """The two languages of a pair code such as `en-de` or `zh_Hans-en`.

    Raises:
        DataError: If it is not two different language codes joined by one hyphen.
    """
    sides = pair.split("-")
    if len(sides) != 2 or not all(_PAIR_SIDE.fullmatch(side) for side in sides):
        raise DataError(
            f"{pair!r} is not a language pair; expected two codes and one hyphen as in en-de, "
            "scripts and regions with an underscore as in zh_Hans-en."
        )
    if sides[0] == sides[1]:
        raise DataError(f"pair {pair!r} names one language twice; a pair needs two languages.")
    return sides[0], sides[1]


@dataclass(frozen=True)
class Source:
    """One origin of text: a file, two aligned files, or a dataset on the Hub.

    Attributes:
        languages: One, or source and target language of aligned sentences.
        locations: One path, two paths (one a side), or one `hub:NAME[:CONFIG[:SPLIT]]`.
    """

    languages: tuple[str, ...]
    locations: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the languages, which become folder names."""
        if self.is_bitext:
            check_pair(self.name)
        elif check_language(self.name) != self.name:
            raise DataError(f"language {self.name!r}: write {check_language(self.name)!r}.")

    def __str__(self) -> str:
        """The locations as they stand in messages."""
        return " + ".join(self.locations)

    @property
    def name(self) -> str:
        """A language, or a pair such as `en-de`."""
        return "-".join(self.languages)

    @property
    def is_bitext(self) -> bool:
        """Whether it holds pairs."""
        return len(self.languages) > 1

    @property
    def is_hub(self) -> bool:
        """Whether it is a dataset on the Hub and no file."""
        return self.locations[0].startswith(HUB_PREFIX)


def hub_parts(location: str) -> tuple[str, str | None, str]:
    """`hub:NAME[:CONFIG[:SPLIT]]` -> name, config, split (`train` if none is given)."""
    name, *rest = location.removeprefix(HUB_PREFIX).split(":")
    if not name or len(rest) > 2:
        raise DataError(f"{location!r}: expected hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT.")
    config, split = (*rest, "", "")[:2]
    return name, config or None, split or "train"


def parse_bitext_sources(specs: Iterable[str]) -> list[Source]:
    """Turn what was typed behind `--bitext_files` into sources.

    Each spec is `LOCATION` or `SOURCE-TARGET=LOCATION`. A location is a file (`en-de.tsv.xz`), two files
    (`x.en,x.fr` or `x.{en,fr}`), a folder (every file in it that is recognised), a glob, or
    `hub:NAME[:CONFIG[:SPLIT]]`. Without `SOURCE-TARGET=` the file's name (or the dataset's config) must carry
    the languages. The first language is that of the first side.

    Args:
        specs: What was typed.

    Returns:
        The sources in the order given, files of one folder or glob sorted by name, each once.

    Raises:
        DataError: If a spec names nothing that can be read.
    """
    sources = [source for spec in specs for source in _parse_bitext(*_split_spec(spec))]
    return list(dict.fromkeys(sources))


def parse_mono_sources(specs: Iterable[str]) -> list[Source]:
    """Turn what was typed behind `--mono_files` into sources, as `parse_bitext_sources` does.

    Each spec is `LOCATION` or `LANGUAGE=LOCATION`; a location is a file (`de.txt.xz`, `news.de.txt`), a
    folder, a glob, or `hub:NAME[:CONFIG[:SPLIT]]`.
    """
    sources = [source for spec in specs for source in _parse_mono(*_split_spec(spec))]
    return list(dict.fromkeys(sources))


def _split_spec(spec: str) -> tuple[str | None, str]:
    """`de=path` -> (`de`, `path`); a path that merely contains `=` stays whole."""
    languages, equals, location = spec.partition("=")
    if not equals or "/" in languages or languages.startswith(HUB_PREFIX) or Path(spec).exists():
        return None, spec
    if not location:
        raise DataError(f"{spec!r} names languages but no file; write LANGUAGES=PATH.")
    return languages, location


def _parse_bitext(pair: str | None, location: str) -> list[Source]:
    languages = check_pair(pair) if pair is not None else None
    if location.startswith(HUB_PREFIX):
        config = hub_parts(location)[1] or ""
        return [Source(languages or _required_pair(config, location), (location,))]
    braces = re.fullmatch(r"(.*)\{([^{},]+),([^{},]+)\}(.*)", location)
    if braces and not Path(location).exists():
        before, first, second, after = braces.groups()
        languages = languages or check_pair(f"{first}-{second}")
        return [_two_files(before + first + after, before + second + after, languages)]
    if "," in location and not Path(location).exists():
        first, second = _split_at_comma(location)
        return [_two_files(first, second, languages)]
    paths = _expand(location, lambda path: _is_bitext_file(path, languages))
    return [_bitext_file(path, languages) for path in paths]


def _split_at_comma(location: str) -> tuple[str, str]:
    """Two file names; a comma inside of one is told by which files there are."""
    commas = [match.start() for match in re.finditer(",", location)]
    splits = [(location[:comma], location[comma + 1 :]) for comma in commas]
    present = [split for split in splits if all(Path(part).expanduser().exists() for part in split)]
    return (present or splits)[0]


def _parse_mono(language: str | None, location: str) -> list[Source]:
    if language is not None:
        if _PAIR_IN_NAME.fullmatch(language):
            raise DataError(
                f"{language!r} is a pair; text of one language wants LANGUAGE=PATH as in de={location}."
            )
        language = check_language(language)
    if location.startswith(HUB_PREFIX):
        config = hub_parts(location)[1] or ""
        return [Source((language or _required_language(config, location),), (location,))]
    paths = _expand(location, lambda path: _is_mono_file(path, language))
    return [_mono_file(path, language) for path in paths]


def _expand(location: str, is_usable: Callable[[Path], bool]) -> list[Path]:
    """The files meant by a path or a glob, or the usable ones of a folder, sorted by name."""
    path = Path(location).expanduser()
    if path.is_dir():
        return _usable(path, is_usable)
    if path.exists():
        _require_regular(path)
        return [path]
    if not glob.has_magic(location):
        raise DataError(f"{location}: no such file or folder.")
    matches = sorted(match for match in map(Path, glob.glob(str(path), recursive=True)) if match.is_file())
    if not matches:
        raise DataError(f"no file matches {location}")
    return matches


def _usable(folder: Path, is_usable: Callable[[Path], bool]) -> list[Path]:
    """Those files of a folder that are of the kind asked for; the others are named once."""
    files = sorted(child for child in folder.iterdir() if child.is_file())
    usable = [path for path in files if is_usable(path)]
    if not usable:
        raise DataError(
            f"folder {folder} holds no file to read; {_KNOWN_FILES}, and its name carries the language. "
            "Two files of a pair are given as x.en,x.de, others as LANGUAGES=PATH."
        )
    others = [path.name for path in files if path not in usable and not _IS_NOTICE.match(path.name)]
    if others:
        logger.warning(
            "%s: %s not read, by name; two files of a pair are given as x.en,x.de, others as LANGUAGES=PATH",
            folder,
            some(others),
        )
    return usable


def _require_regular(path: Path) -> None:
    if not path.is_file():
        raise DataError(
            f"{path} is a pipe or device; text is read more than once, so write it to a file first."
        )


# ------------------------------------------------------------------------------------------ what a name says


@dataclass(frozen=True)
class FileName:
    """A file's name taken apart: `news.de.txt.gz` is stem `news.de`, format `text`, compression `.gz`."""

    stem: str
    format: str | None
    compression: str


def take_apart(path: Path) -> FileName:
    """Stem, format and compression of a file, by its name alone."""
    compression = path.suffix if path.suffix in _COMPRESSIONS else ""
    stem = path.name.removesuffix(compression)
    suffix = Path(stem).suffix
    return FileName(
        stem.removesuffix(suffix) if suffix in _FORMATS else stem, _FORMATS.get(suffix), compression
    )


def format_of(path: Path, language: str | None) -> str:
    """The format of a file; `x.de` is text of the language `de`."""
    name = take_apart(path)
    if name.format is not None:
        return name.format
    stem, _, suffix = name.stem.rpartition(".")
    if Path(stem).suffix in _FORMATS:
        raise DataError(f"{path}: unknown compression .{suffix}; expected one of {', '.join(_COMPRESSIONS)}.")
    if stem and (suffix == language or re.fullmatch(_GUESSED, suffix)):
        return "text"
    raise DataError(f"{path}: unknown kind of file; {_KNOWN_FILES}.")


def pair_in(name: str) -> tuple[str, str] | None:
    """The pair that a name carries in a part of its own: `news.en-de` -> (`en`, `de`)."""
    pairs = [(match[1], match[2]) for match in _PAIR_IN_NAME.finditer(name)]
    return pairs[-1] if pairs and pairs[-1][0] != pairs[-1][1] else None


def language_in(name: str) -> str | None:
    """The language that a name ends with: `news.de` -> `de`; none if it ends with a pair, or in a region."""
    match = None if pair_in(name.rpartition(".")[2]) else _LANGUAGE_IN_NAME.search(name)
    return match[0] if match else None


def _required(found: T | None, location: str, kind: str, example: str, with_region: str) -> T:
    if found is None:
        raise DataError(
            f"{location}: its name carries no {kind}; write for example {example}={location}, "
            f"with a region {with_region}={location}"
        )
    return found


def _required_pair(name: str, location: str) -> tuple[str, str]:
    return _required(pair_in(name), location, "language pair", "en-de", "en-pt_BR")


def _required_language(name: str, location: str) -> str:
    return _required(language_in(name), location, "language", "de", "pt_BR")


# ------------------------------------------------------------------------------------------- files to sources


def _mono_file(path: Path, language: str | None) -> Source:
    language = language or _required_language(take_apart(path).stem, str(path))
    format_of(path, language)
    return Source((language,), (str(path),))


def _is_mono_file(path: Path, language: str | None) -> bool:
    """Whether a file found in a folder is text of one language (of `language`, if that is given)."""
    name = take_apart(path)
    found = language_in(name.stem)
    if name.format is None:  # `x.de` must be asked for, or README.md would be in the language `md`
        return found is not None and found == language
    if found is None:
        return language is not None and pair_in(name.stem) is None
    return language in (None, found)


def _two_files(first: str, second: str, languages: tuple[str, str] | None) -> Source:
    paths = [Path(location).expanduser() for location in (first, second)]
    if languages is None:
        sides = [_required_language(take_apart(path).stem, str(path)) for path in paths]
        languages = check_pair("-".join(sides))
    pair = "-".join(languages)
    for path, language in zip(paths, languages, strict=True):
        if not path.exists() or path.is_dir():
            raise DataError(f"{path}: no such file; two-file bitext {pair} needs both sides.")
        _require_regular(path)
        if format_of(path, language) != "text":
            raise DataError(f"{path}: the two files of {pair} must be plain text, a sentence a line.")
    if paths[0].samefile(paths[1]):
        raise DataError(f"both sides of {pair} are the same file {first}; give its translation too.")
    return Source(languages, (str(paths[0]), str(paths[1])))


def _bitext_file(path: Path, languages: tuple[str, str] | None) -> Source:
    languages = languages or _required_pair(take_apart(path).stem, str(path))
    if format_of(path, None) == "text":
        raise DataError(
            f"{path} is plain text and has one side only; give two files as in x.en,x.fr or a .tsv file."
        )
    return Source(languages, (str(path),))


def _is_bitext_file(path: Path, languages: tuple[str, str] | None) -> bool:
    """Whether a file of a folder holds pairs: of `languages` if given, where its name says no others."""
    name = take_apart(path)
    found = pair_in(name.stem)
    fits = found is not None if languages is None else found is None or set(found) == set(languages)
    return name.format in ("tsv", "jsonl", "parquet") and fits

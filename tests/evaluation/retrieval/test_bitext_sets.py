"""Test sets in every layout that is read, and the ones that are refused."""

import json
import os
from pathlib import Path

import pytest

from modeling_infoxlm.evaluation.results import DatasetRecord
from modeling_infoxlm.evaluation.retrieval.bitext_sets import (
    PAPER_LANGUAGES,
    XTREME_LANGUAGES,
    BitextSet,
    load_dataset_pairs,
    load_files,
    load_folder,
    short_code,
)
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import file_sha256

DATA = Path(os.environ.get("INFOXLM_DATA", "../shared/data"))
GERMAN, FRENCH = ["Guten Tag.", "Ja.", "Nein."], ["Salut.", "Oui.", "Non."]
ENGLISH = ["Good day.", "Yes.", "No."]


LAYOUTS: dict[str, dict[str, list[str]]] = {
    "tatoeba": {
        "fr-en.fr": FRENCH, "fr-en.en": ENGLISH, "en-de.de": GERMAN, "en-de.en": ENGLISH,
        "SOURCE.txt": ["where from"],
    },
    "laser": {
        "tatoeba.deu-eng.deu": GERMAN, "tatoeba.deu-eng.eng": ENGLISH, "tatoeba.fra-eng.fra": FRENCH,
        "tatoeba.fra-eng.eng": ENGLISH,
    },
    "ntrex": {
        "newstest2019-src.eng.txt": ENGLISH, "newstest2019-ref.deu.txt": GERMAN,
        "newstest2019-ref.fra.txt": FRENCH, "newstest2019-ref.fra-CA.txt": FRENCH,
        "newstest2019-ref.eng-GB.txt": ENGLISH,
    },
    "flores": {
        "deu_Latn.devtest": GERMAN, "fra_Latn.devtest": FRENCH, "eng_Latn.devtest": ENGLISH,
        "zho_Hans.devtest": GERMAN, "zho_Hant.devtest": GERMAN,
    },
}  # fmt: skip


def write(folder: Path, files: dict[str, list[str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        text = "".join(f"{line}\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder


BOTH = [BitextSet("de", "de-en", GERMAN, ENGLISH), BitextSet("fr", "fr-en", FRENCH, ENGLISH)]


@pytest.mark.parametrize(
    ("layout", "others"),
    [("tatoeba", []), ("laser", []), ("ntrex", ["fra_CA"]), ("flores", ["zh", "zho_Hant"])],
)
def test_layouts(tmp_path: Path, layout: str, others: list[str]) -> None:
    """Whichever side is named first, English is the target, and its varieties are no other language."""
    folder = write(tmp_path / layout, LAYOUTS[layout])
    sets, record = load_folder(folder)
    assert sets[:2] == BOTH
    assert [one.language for one in sets[2:]] == others
    read = [name for name in LAYOUTS[layout] if name not in ("SOURCE.txt", "newstest2019-ref.eng-GB.txt")]
    assert record.name == layout and sorted(record.files) == sorted(read)
    assert record.files[read[0]] == file_sha256(folder / read[0])


def test_languages_are_chosen_by_any_code_and_blank_pairs_left_out(tmp_path: Path) -> None:
    """A blank line at the end would be found beside every other one."""
    tatoeba = write(tmp_path, LAYOUTS["tatoeba"])
    for name in ("fr-en.fr", "fr-en.en", "en-de.de"):
        with open(tatoeba / name, "a") as file:
            file.write("\n")
    assert load_folder(tatoeba)[0] == BOTH
    assert [one.language for one in load_folder(tatoeba, ["fr", "deu", "fra"])[0]] == ["fr", "de"]
    with pytest.raises(UsageError, match="no set of sw, th; it has de, fr"):
        load_folder(tatoeba, ["sw", "de", "th"])


def test_tsv_and_plain_files(tmp_path: Path) -> None:
    lines = [f"{english}\t{german}" for english, german in zip(ENGLISH, GERMAN, strict=True)]
    folder = write(tmp_path, {"x.fr": FRENCH, "x.en": ENGLISH, "en-de.tsv": lines})
    specs = [str(folder / "en-de.tsv"), f"{folder / 'x.fr'},{folder / 'x.en'}"]
    sets, record = load_files(specs)
    assert sets == BOTH
    assert sorted(record.files) == ["en-de.tsv", "x.en", "x.fr"]
    assert [one.language for one in load_folder(folder)[0]] == ["de"]  # two files are named, not guessed
    (other,), _ = load_files([f"de-fr={folder / 'en-de.tsv'}"])
    assert (other.language, other.pair) == ("de-fr", "de-fr")


def write_dataset(folder: Path, columns: tuple[str, str] = ("sentence1", "sentence2")) -> Path:
    """In the layout of mteb/tatoeba-bitext-mining."""
    sides, entries = {"deu-eng": GERMAN, "fra-eng": FRENCH}, []
    for config, side in sides.items():
        rows = [dict(zip(columns, pair, strict=True)) for pair in zip(side, ENGLISH, strict=True)]
        write(folder, {f"{config}.jsonl": list(map(json.dumps, rows))})
        part = {"split": "test", "path": f"{config}.jsonl"}
        entries.append({"config_name": config, "data_files": [part]})
    return write(folder, {"README.md": ["---", json.dumps({"configs": entries}), "---"]})


def test_dataset_with_a_config_for_each_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = write_dataset(tmp_path / "pairs")
    sets, record = load_dataset_pairs(str(folder), ["deu"])
    assert sets == BOTH[:1]
    assert record.revision is None and sorted(record.files) == ["README.md", "deu-eng.jsonl", "fra-eng.jsonl"]
    assert [one.language for one in load_dataset_pairs(str(folder))[0]] == ["de", "fr"]
    other = write_dataset(tmp_path / "other", ("source", "target"))
    with pytest.raises(UsageError, match="deu-eng, row 1: expected text in the columns sentence1 and"):
        load_dataset_pairs(str(other))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty cannot be loaded"):
        load_dataset_pairs(str(tmp_path / "empty"))


def test_what_is_on_the_hub_is_read_and_recorded_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset with a configuration for each pair, and bitext as pre-training reads it."""
    asked = []

    def load(name: str, config: str, **options: object) -> list[dict[str, object]]:
        asked.append((name, config, options["revision"]))
        pair = {"de": GERMAN[0], "en": ENGLISH[0]}
        return [{"sentence1": GERMAN[0], "sentence2": ENGLISH[0], "translation": pair}]

    module = "modeling_infoxlm.evaluation.retrieval.bitext_sets"
    monkeypatch.setattr(f"{module}.hub_revision", lambda *given, **options: "abc")
    monkeypatch.setattr("datasets.get_dataset_config_names", lambda name, **options: ["deu-eng", "default"])
    monkeypatch.setattr("datasets.load_dataset", load)
    name, expected = "mteb/tatoeba-bitext-mining", [BitextSet("de", "de-en", GERMAN[:1], ENGLISH[:1])]
    found = load_dataset_pairs(name, revision="main", token="mine")
    assert found == (expected, DatasetRecord(name, {}, "abc", name))
    sets, record = load_files(["de-en=hub:org/pairs:de-en"])
    assert sets == expected and asked == [(name, "deu-eng", "abc"), ("org/pairs", "de-en", "abc")]
    assert record.files == {"hub:org/pairs:de-en": "abc"} and record.sha256 is not None


def test_codes() -> None:
    shorter = {
        "deu": "de", "deu_Latn": "de", "zho-CN": "zh", "cmn": "zh", "arb_Arab": "ar", "swh_Latn": "sw",
        "pes": "fa", "spa-MX": "spa_MX",
    }  # fmt: skip
    same = ("zho_Hant", "arb_Latn", "de", "ace_Latn")
    for code, short in (shorter | dict(zip(same, same, strict=True))).items():
        assert short_code(code) == short


TATOEBA = LAYOUTS["tatoeba"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (TATOEBA | {"fr-en.fr": FRENCH[:2]}, r"2 source lines .* but 3 target lines"),
        (TATOEBA | {"fr-en.fr": ["Salut.", "\udce9", "Non."]}, "line 2: invalid UTF-8"),  # others would move
        (TATOEBA | {"fr-en.fr": None}, r"fr-en: .*fr-en\.fr is missing"),
        (TATOEBA | {"deu-eng.deu": GERMAN, "deu-eng.eng": ENGLISH}, "two sets of de"),
        (None, "there is no folder"),
        ({}, "holds no file to read"),
        ({"deu_Latn.dev": GERMAN}, "no eng_Latn.dev,"),
        (
            {"deu_Latn.dev": GERMAN, "eng_Latn.dev": ENGLISH, "deu_Latn.devtest": GERMAN},
            "the splits dev and devtest; give a folder with one",
        ),
    ],
)
def test_sets_that_cannot_be_used(
    tmp_path: Path, files: dict[str, list[str] | None] | None, message: str
) -> None:
    if files is not None:
        write(tmp_path / "sets", {name: lines for name, lines in files.items() if lines is not None})
    with pytest.raises(UsageError, match=message):
        load_folder(tmp_path / "sets")


@pytest.mark.skipif(not (DATA / "eval" / "tatoeba").is_dir(), reason=f"no Tatoeba in {DATA} (INFOXLM_DATA)")
def test_the_real_tatoeba_has_the_languages_of_both_papers() -> None:
    sets, record = load_folder(DATA / "eval" / "tatoeba")
    assert tuple(one.language for one in sets) == XTREME_LANGUAGES and len(record.files) == 72
    assert set(PAPER_LANGUAGES) < set(XTREME_LANGUAGES) and len(PAPER_LANGUAGES) == 14
    assert sum(len(one.source) for one in sets) == 31_692
    assert {one.language: len(one.target) for one in sets}["sw"] == 390

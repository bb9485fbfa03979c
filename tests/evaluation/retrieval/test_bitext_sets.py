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


def write(folder: Path, **files: list[str]) -> Path:
    """Files by name, `__` for a dot and `_0_` for a hyphen."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        path = folder / name.replace("__", ".").replace("_0_", "-")
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def assert_german_and_french(sets: list[BitextSet]) -> None:
    assert sets == [
        BitextSet("de", "de-en", GERMAN, ENGLISH),
        BitextSet("fr", "fr-en", FRENCH, ENGLISH),
    ]


@pytest.fixture
def tatoeba(tmp_path: Path) -> Path:
    return write(
        tmp_path / "tatoeba", fr_0_en__fr=FRENCH, fr_0_en__en=ENGLISH, en_0_de__de=GERMAN,
        en_0_de__en=ENGLISH, SOURCE__txt=["where from"],
    )  # fmt: skip


def test_tatoeba_folder_whichever_side_is_named_first(tatoeba: Path) -> None:
    sets, record = load_folder(tatoeba)
    assert_german_and_french(sets)
    assert record.name == "tatoeba"
    assert sorted(record.files) == ["en-de.de", "en-de.en", "fr-en.en", "fr-en.fr"]
    assert record.files["fr-en.fr"] == file_sha256(tatoeba / "fr-en.fr")


def test_blank_pairs_are_left_out(tatoeba: Path) -> None:
    """A blank line at the end would be found beside every other one."""
    for name in ("fr-en.fr", "fr-en.en", "en-de.de"):
        with open(tatoeba / name, "a") as file:
            file.write("\n")
    assert_german_and_french(load_folder(tatoeba)[0])


def test_tatoeba_as_laser_names_it(tmp_path: Path) -> None:
    folder = write(
        tmp_path, tatoeba__deu_0_eng__deu=GERMAN, tatoeba__deu_0_eng__eng=ENGLISH,
        tatoeba__fra_0_eng__fra=FRENCH, tatoeba__fra_0_eng__eng=ENGLISH,
    )  # fmt: skip
    assert_german_and_french(load_folder(folder)[0])


def test_ntrex_folder(tmp_path: Path) -> None:
    folder = write(
        tmp_path, newstest2019_0_src__eng__txt=ENGLISH, newstest2019_0_ref__deu__txt=GERMAN,
        newstest2019_0_ref__fra__txt=FRENCH, newstest2019_0_ref__fra_0_CA__txt=FRENCH,
        newstest2019_0_ref__eng_0_GB__txt=ENGLISH,
    )  # fmt: skip
    sets, _ = load_folder(folder)
    assert [one.language for one in sets] == ["de", "fr", "fra_CA"]
    assert_german_and_french(sets[:2])


def test_flores_folder(tmp_path: Path) -> None:
    folder = write(
        tmp_path, deu_Latn__devtest=GERMAN, fra_Latn__devtest=FRENCH, eng_Latn__devtest=ENGLISH,
        zho_Hans__devtest=GERMAN, zho_Hant__devtest=GERMAN,
    )  # fmt: skip
    sets, _ = load_folder(folder)
    assert [one.language for one in sets] == ["de", "fr", "zh", "zho_Hant"]
    assert_german_and_french(sets[:2])


def test_flores_folder_with_two_splits_or_without_english(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no eng_Latn.dev,"):
        load_folder(write(tmp_path / "no_english", deu_Latn__dev=GERMAN))
    both = write(tmp_path / "both", deu_Latn__dev=GERMAN, eng_Latn__dev=ENGLISH, deu_Latn__devtest=GERMAN)
    with pytest.raises(UsageError, match="the splits dev and devtest; give a folder with one"):
        load_folder(both)


def test_tsv_and_plain_files(tmp_path: Path) -> None:
    folder = write(tmp_path, x__fr=FRENCH, x__en=ENGLISH)
    lines = [f"{english}\t{german}" for english, german in zip(ENGLISH, GERMAN, strict=True)]
    write(tmp_path, en_0_de__tsv=lines)
    specs = [str(folder / "en-de.tsv"), f"{folder / 'x.fr'},{folder / 'x.en'}"]
    sets, record = load_files(specs)
    assert_german_and_french(sets)
    assert sorted(record.files) == ["en-de.tsv", "x.en", "x.fr"]
    assert [one.language for one in load_folder(folder)[0]] == ["de"]  # two files are named, not guessed
    (other,), _ = load_files([f"de-fr={folder / 'en-de.tsv'}"])
    assert (other.language, other.pair) == ("de-fr", "de-fr")


def test_dataset_with_a_config_for_each_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = write_dataset(tmp_path / "pairs")
    sets, record = load_dataset_pairs(str(folder), ["deu"])
    assert sets == [BitextSet("de", "de-en", GERMAN, ENGLISH)]
    assert record.revision is None and sorted(record.files) == ["README.md", "deu-eng.jsonl", "fra-eng.jsonl"]
    assert [one.language for one in load_dataset_pairs(str(folder))[0]] == ["de", "fr"]


def write_dataset(folder: Path, columns: tuple[str, str] = ("sentence1", "sentence2")) -> Path:
    """In the layout of mteb/tatoeba-bitext-mining."""
    sides = {"deu-eng": GERMAN, "fra-eng": FRENCH}
    folder.mkdir()
    for config, side in sides.items():
        rows = [dict(zip(columns, pair, strict=True)) for pair in zip(side, ENGLISH, strict=True)]
        (folder / f"{config}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: test\n    path: {config}.jsonl\n"
        for config in sides
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    return folder


def test_dataset_of_other_columns_or_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = write_dataset(tmp_path / "pairs", ("source", "target"))
    with pytest.raises(UsageError, match="deu-eng, row 1: expected text in the columns sentence1 and"):
        load_dataset_pairs(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty cannot be loaded"):
        load_dataset_pairs(str(tmp_path / "empty"))


def test_a_dataset_of_the_hub_is_read_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, config: str, **options: object) -> list[dict[str, str]]:
        asked.append((name, config, options["split"], options["revision"], options["token"]))
        return [{"sentence1": GERMAN[0], "sentence2": ENGLISH[0]}]

    monkeypatch.setattr(
        "modeling_infoxlm.evaluation.retrieval.bitext_sets.hub_revision", lambda *_, **options: "abc"
    )
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, **options: ["deu-eng", "default"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    sets, record = load_dataset_pairs("mteb/tatoeba-bitext-mining", revision="main", token="mine")
    assert sets == [BitextSet("de", "de-en", GERMAN[:1], ENGLISH[:1])]
    assert asked == [("mteb/tatoeba-bitext-mining", "deu-eng", "test", "abc", "mine")]
    assert record == DatasetRecord("mteb/tatoeba-bitext-mining", {}, "abc", "mteb/tatoeba-bitext-mining")


def test_bitext_of_the_hub_is_read_and_recorded_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, config: str, **options: object) -> list[dict[str, object]]:
        asked.append((name, config, options["revision"]))
        return [{"translation": {"de": GERMAN[0], "en": ENGLISH[0]}}]

    monkeypatch.setattr(
        "modeling_infoxlm.evaluation.retrieval.bitext_sets.hub_revision", lambda location: "abc"
    )
    monkeypatch.setattr(datasets, "load_dataset", load)
    sets, record = load_files(["de-en=hub:org/pairs:de-en"])
    assert sets == [BitextSet("de", "de-en", GERMAN[:1], ENGLISH[:1])]
    assert asked == [("org/pairs", "de-en", "abc")]
    assert record.files == {"hub:org/pairs:de-en": "abc"} and record.sha256 is not None


@pytest.mark.parametrize(
    ("code", "short"),
    [
        ("deu", "de"), ("deu_Latn", "de"), ("zho-CN", "zh"), ("zho_Hant", "zho_Hant"), ("cmn", "zh"),
        ("arb_Arab", "ar"), ("arb_Latn", "arb_Latn"), ("spa-MX", "spa_MX"), ("swh_Latn", "sw"), ("de", "de"),
        ("ace_Latn", "ace_Latn"), ("pes", "fa"),
    ],
)  # fmt: skip
def test_codes(code: str, short: str) -> None:
    assert short_code(code) == short


def test_languages_are_chosen_by_any_code(tatoeba: Path) -> None:
    assert [one.language for one in load_folder(tatoeba, ["fr", "deu", "fra"])[0]] == ["fr", "de"]
    with pytest.raises(UsageError, match="no set of sw, th; it has de, fr"):
        load_folder(tatoeba, ["sw", "de", "th"])


def test_sets_that_cannot_be_used(tatoeba: Path) -> None:
    french = tatoeba / "fr-en.fr"
    for content, message in (
        (b"Salut.\nOui.\n", r"2 source lines .* but 3 target lines"),
        (b"Salut.\n\xe9\nNon.\n", "line 2: invalid UTF-8"),  # without it the others would move
        (None, r"fr-en: .*fr-en\.fr is missing"),
    ):
        french.unlink() if content is None else french.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            load_folder(tatoeba)
    write(tatoeba, deu_0_eng__deu=GERMAN, deu_0_eng__eng=ENGLISH)
    with pytest.raises(UsageError, match="two sets of de"):
        load_folder(tatoeba)


def test_folder_that_is_missing_or_holds_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        load_folder(tmp_path / "none")
    with pytest.raises(UsageError, match="holds no file to read"):
        load_folder(tmp_path)


@pytest.mark.skipif(not (DATA / "eval" / "tatoeba").is_dir(), reason=f"no Tatoeba in {DATA} (INFOXLM_DATA)")
def test_the_real_tatoeba_has_the_languages_of_both_papers() -> None:
    sets, record = load_folder(DATA / "eval" / "tatoeba")
    assert tuple(one.language for one in sets) == XTREME_LANGUAGES and len(record.files) == 72
    assert set(PAPER_LANGUAGES) < set(XTREME_LANGUAGES) and len(PAPER_LANGUAGES) == 14
    assert sum(len(one.source) for one in sets) == 31_692
    assert {one.language: len(one.target) for one in sets}["sw"] == 390

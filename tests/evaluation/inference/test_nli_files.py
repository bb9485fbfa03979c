"""Inference data in every layout gives the same rows, and what is wrong with it is said with its place."""

import gzip
import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tiny_nli import Row, nli_rows, write_nli, write_xnli

from modeling_infoxlm.evaluation.hub_data import HubData
from modeling_infoxlm.evaluation.inference import nli_files
from modeling_infoxlm.evaluation.inference.nli_files import (
    COLUMNS,
    XNLI_LANGUAGES,
    files_in_folder,
    files_of_patterns,
)
from modeling_infoxlm.runs.errors import UsageError

ROWS: list[Row] = [
    ("Il a dit oui.", 'Il a dit "oui".', "neutral"),
    ("line\u2028separator", "à", "contradiction"),
    ("w4", "", "entailment"),
]
NUMBERED = [(*texts, label) for (*texts, _), label in zip(ROWS, [1, 2, 0], strict=True)]
DATA = Path(os.environ.get("INFOXLM_DATA", "../shared/data"))


def read_nli(path: Path, language: str) -> pd.DataFrame:
    return nli_files.read_nli(path, language, Counter())


def tsv(rows: Iterable[tuple[object, ...]], end: str = "\n") -> bytes:
    return "".join("\t".join(map(str, row)) + end for row in rows).encode()


def official_xnli() -> bytes:
    """All languages in one file; the columns in another order, others between."""
    lines = [("language", "gold_label", "sentence1_parse", "sentence1", "sentence2", "promptID")]
    for premise, hypothesis, label in ROWS:
        lines.append(("de", "neutral", "(x)", "Deutsch", "Auch", str(len(lines))))
        lines.append(("fr", label, "(x)", premise, hypothesis, str(len(lines))))
    return tsv(lines)


def json_lines() -> bytes:
    lines = pd.DataFrame(ROWS, columns=["sentence1", "sentence2", "gold_label"])
    return gzip.compress(lines.to_json(orient="records", lines=True).encode())


def parquet() -> bytes:
    return pd.DataFrame(NUMBERED, columns=["premise", "hypothesis", "label"]).to_parquet()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dev-fr.tsv", tsv(ROWS)),
        ("dev-fr.tsv", tsv([(*row, "fiction") for row in ROWS], "\r\n")),
        ("dev-fr.tsv", tsv(NUMBERED)),
        (  # MultiNLI's translations
            "multinli.train.fr.tsv",
            b"\xef\xbb\xbfpremise\thypo\tlabel\n" + tsv(ROWS).replace(b"contradiction", b"contradictory"),
        ),
        ("xnli.dev.tsv", official_xnli()),
        ("dev-fr.jsonl.gz", json_lines()),
        ("dev-fr.parquet", parquet()),
    ],
)
def test_every_layout_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    genre = "fiction" if b"fiction" in content else ""
    found = read_nli(tmp_path / name, "fr")
    assert list(found.columns) == COLUMNS
    assert list(found.itertuples(index=False, name=None)) == [(*row, genre) for row in NUMBERED]


class HubRows(list[dict[str, object]]):
    """Rows of a dataset whose columns may hold anything."""

    features: dict[str, object] = {}


def read_hub(monkeypatch: pytest.MonkeyPatch, rows: object, left_out: Counter[str]) -> pd.DataFrame:
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: rows)
    commit = "0" * 40  # needs no network
    return nli_files.read_hub_nli(HubData(None, None), "facebook/xnli", "dev", commit, "fr", left_out)


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet", "hub"])
def test_rows_that_do_no_harm_are_left_out_and_counted(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SNLI's `-`, the -1 of test sets, blank lines; and numbers are labels also as 0.0."""
    path, blank = tmp_path / f"dev-fr.{kind}", 0
    labels: list[object] = [0.0, "-", "-1", -1, -1.0, None, math.nan, "", 1.0, 2.0]
    rows = [{"premise": f"p{i}", "hypothesis": "h", "label": label} for i, label in enumerate(labels)]
    if kind == "tsv":
        shown = ["" if label is None else str(label) for label in labels]
        path.write_text("\n" + "\n \n".join(f"p{i}\th\t{label}" for i, label in enumerate(shown)) + "\n\n")
        blank = 11
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        blank = 1
    elif kind == "parquet":
        numbers = [label if label is None else float(label) for label in labels if label not in ("-", "")]
        texts = ["p0", *(f"p{i}" for i in range(2, 7)), "p8", "p9"]
        table = {"premise": texts, "hypothesis": ["h"] * 8, "label": numbers}
        pd.DataFrame(table).to_parquet(path)
    left_out: Counter[str] = Counter()
    if kind == "hub":
        found = read_hub(monkeypatch, HubRows(rows), left_out)
    else:
        found = nli_files.read_nli(path, "fr", left_out)
    assert (found.premise.tolist(), found.label.tolist()) == (["p0", "p8", "p9"], [0, 1, 2])
    unlabelled = 5 if kind == "parquet" else 7
    expected = {"rows without a gold label": unlabelled, **({"blank lines": blank} if blank else {})}
    assert left_out == expected
    assert f"{unlabelled} rows without a gold label" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tsv", b"a\tb\tneutral\na\tb\tmaybe\n", "fr.tsv, line 2: label 'maybe' is none of entailment"),
        ("tsv", b"a\tb\t3\n", "dev-fr.tsv, line 1: label '3' is none of"),
        ("tsv", b"a\tb\tneutral\na\tb\n", "line 2: expected the columns premise, hypothesis, label, found 2"),
        ("tsv", b"premise\thypothesis\na\tb\n", "line 2: no label; found premise, hypothesis"),
        ("tsv", b"", "dev-fr.tsv is empty"),
        ("tsv", b"premise\thypothesis\tlabel\n", "dev-fr.tsv has no row of the language fr"),
        ("tsv", b"a\tb\t-\nc\td\t-\n", "language fr that can be used, only 2 rows without a gold lab"),
        ("tsv", b"caf\xe9\tb\tneutral\n", "line 1: invalid UTF-8, byte 0xe9"),
        ("jsonl", b'{"premise": "a"\n', "line 1: not JSON"),
        ("jsonl", b"[1]\n", "line 1: found list, expected an object"),
        ("jsonl", b'{"premise": "a", "hypothesis": null, "label": 1}\n', "line 1: no hypothesis"),
        ("tsv.gz", gzip.compress(b"a\tb\tneutral\n", mtime=0)[:-9], "cannot be read beyond line"),
        ("parquet", b"PAR1", "cannot be read as Parquet"),
        ("txt", b"a\n", r"unknown kind of file; expected \.tsv, \.jsonl or \.parquet"),
    ],
)
def test_bad_rows_and_damaged_files_are_refused_with_their_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / f"dev-fr.{name}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_nli(path, "fr")


# ---------------------------------------------------------------------------- which file is of which language


def test_a_folder_has_a_file_for_each_language_or_one_for_all(tmp_path: Path) -> None:
    write_xnli(tmp_path)
    (tmp_path / "SOURCE.txt").write_text("x")
    found = files_in_folder(tmp_path, "dev", ["fr", "en"])
    assert found == {"fr": tmp_path / "dev-fr.tsv", "en": tmp_path / "dev-en.tsv"}
    assert files_in_folder(tmp_path, "train", ["en"]) == {"en": tmp_path / "train-en.tsv.gz"}
    with pytest.raises(UsageError, match=r"no test file, such as test-xx\.tsv, for sw, th; name the lang"):
        files_in_folder(tmp_path, "test", ["en", "sw", "de", "th"])
    with pytest.raises(UsageError, match="no such folder"):
        files_in_folder(tmp_path / "nowhere", "test", ["en"])
    (official := tmp_path / "official").mkdir()
    (official / "xnli.dev.tsv").write_bytes(official_xnli())
    found = files_in_folder(official, "dev", XNLI_LANGUAGES)
    assert set(found) == set(XNLI_LANGUAGES) and set(found.values()) == {official / "xnli.dev.tsv"}
    assert read_nli(found["de"], "de").premise.tolist() == ["Deutsch"] * 3
    with pytest.raises(UsageError, match="has no row of the language sw"):
        read_nli(found["sw"], "sw")


def test_files_are_named_by_patterns(tmp_path: Path) -> None:
    write_xnli(tmp_path)

    def find(*patterns: str | Path, languages: list[str] | None = None) -> dict[str, Path]:
        return files_of_patterns(
            list(map(str, patterns)), "--test_files", languages=languages, unnamed=["en"]
        )

    pattern = tmp_path / "dev-*.tsv"
    assert find(pattern) == {name: tmp_path / f"dev-{name}.tsv" for name in ("de", "en", "fr")}
    assert list(find(pattern, languages=["fr", "en"])) == ["fr", "en"]
    own = write_nli(tmp_path / "b" / "xnli.dev.tsv", nli_rows("en", 3))  # its own name: `dev` is no language
    assert find(own, languages=["de"]) == {"de": own}
    plain = write_nli(tmp_path / "mine.tsv", nli_rows("en", 3))
    assert find(plain) == {"en": plain}
    french = write_nli(tmp_path / "b" / "x-fr.tsv", nli_rows("fr", 3))
    for patterns, languages, message in (
        ([pattern, plain], None, r"--test_files: .*mine\.tsv carries no language"),
        ([pattern, french], None, "both of the language fr"),
        ([pattern], ["fr", "sw"], "--test_files names no file for sw; name the languages"),
        ([tmp_path / "nothing*.tsv"], None, "--test_files: no file matches"),
    ):
        with pytest.raises(UsageError, match=message):
            find(*patterns, languages=languages)


# ---------------------------------------------------------------------------- the Hub


def test_a_label_is_what_the_dataset_calls_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all count from entailment: the numbers of others once were taken for ours."""
    label = ClassLabel(names=["contradiction", "Neutral", "entailment"])
    features = Features(premise=Value("string"), hypothesis=Value("string"), gold_label=label)
    rows = [{"premise": "a", "hypothesis": "b", "gold_label": number} for number in (0, 1, 2, -1)]
    left_out: Counter[str] = Counter()
    found = read_hub(monkeypatch, Dataset.from_list(rows, features=features), left_out)
    assert found.label.tolist() == [2, 1, 0] and left_out == {"rows without a gold label": 1}
    with pytest.raises(UsageError, match="facebook/xnli has no row .* only 1 rows without"):
        read_hub(monkeypatch, Dataset.from_list(rows[3:], features=features), Counter())


# ---------------------------------------------------------------------------- real files


@pytest.mark.skipif(not (DATA / "train/nli").is_dir(), reason=f"no real data in {DATA}; set INFOXLM_DATA")
def test_the_real_sets_are_read_and_dev_is_parallel() -> None:
    files = files_in_folder(DATA / "eval/xnli_dev", "dev", XNLI_LANGUAGES)
    english = read_nli(files["en"], "en")
    assert Counter(english.label) == {0: 830, 1: 830, 2: 830}
    for language in ("sw", "th", "zh"):
        assert read_nli(files[language], language).label.equals(english.label)
    pattern = str(DATA / "train/nli/train-*.tsv.gz")
    files = files_of_patterns([pattern], "--train_file", languages=None, unnamed=[])
    assert len(files) == 10 and len(read_nli(files["en"], "en")) == 15_001

"""Mining: the pairs that are written are those of a slow loop, and bad input leaves nothing behind."""

import lzma
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from disk_limit import file_size_limit
from reference.retrieval import margin_matches, similarities
from tiny_encoder import save_tiny_encoder
from tiny_pretraining import Refusal

from modeling_infoxlm.commands.mine import MiningArguments, encode_to_file, mine, read_distinct, run
from modeling_infoxlm.evaluation import encoding
from modeling_infoxlm.evaluation.encoders import Encoder, EncoderArguments, load_encoder
from modeling_infoxlm.evaluation.retrieval import mining
from modeling_infoxlm.runs.errors import DiskFullError, UsageError
from modeling_infoxlm.runs.process import run_main

MAIN = partial(run_main, run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(EncoderArguments(model_name_or_path=str(folder)))


def sentences() -> tuple[list[str], list[str]]:
    """30 and 25 distinct sentences; the first 15 of both sides differ in their last word."""
    draw = np.random.default_rng(3)
    rows = [draw.integers(4, 59, draw.integers(3, 9)) for _ in range(40)]
    source = rows[:30]
    target = [np.append(row[:-1], draw.integers(4, 59)) for row in rows[:15]] + rows[30:]
    texts = [[" ".join(f"w{i}" for i in row) for row in side] for side in (source, target)]
    return texts[0], texts[1]


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    """The sentences as files, the second one compressed, with doubled and empty lines."""
    source, target = sentences()
    paths = tmp_path / "some.txt", tmp_path / "other.txt.xz"
    paths[0].write_text("\n".join([*source[:5], "", source[0], "  ", *source[5:]]) + "\n")
    paths[1].write_bytes(lzma.compress(("\n".join([*target, target[3]]) + "\n").encode()))
    return paths


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "new" / "pairs.tsv"


@pytest.fixture
def argv(folder: Path, texts: tuple[Path, Path], output: Path) -> list[str]:
    return [*map(str, texts), "--model_name_or_path", str(folder), "--output", str(output)]


def slow_pairs(encoder: Encoder, *, margin: str, k: int, one_to_one: bool) -> list[tuple[float, str, str]]:
    """Every sentence's best candidate in both directions, one score at a time; then greedily, if asked."""
    sides = sentences()
    table = similarities(*(encoder.encode(texts, layer=3).numpy() for texts in sides))
    (forth, there), (back, here) = (margin_matches(scores, margin, k) for scores in (table, table.T))
    scores = {(i, j): score for i, (j, score) in enumerate(zip(forth, there, strict=True))}
    scores |= {(i, j): score for j, (i, score) in enumerate(zip(back, here, strict=True))}
    rows = sorted((-score, i, j) for (i, j), score in scores.items())
    kept: list[tuple[float, int, int]] = []
    for row in rows:
        if not one_to_one or all(row[1] != other[1] and row[2] != other[2] for other in kept):
            kept.append(row)
    return [(-score, sides[0][i], sides[1][j]) for score, i, j in kept]


def read_output(path: Path) -> list[tuple[float, str, str]]:
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [(float(score), source, target) for score, source, target in rows]


@pytest.mark.parametrize(
    ("margin", "k", "one_to_one"), [("ratio", 4, True), ("distance", 2, False), ("none", 4, True)]
)
def test_pairs_are_those_of_a_slow_loop(
    argv: list[str], encoder: Encoder, output: Path, margin: str, k: int, one_to_one: bool
) -> None:
    run([*argv, *f"--margin {margin} --margin_neighbours {k} --one_to_one {one_to_one}".split()])
    expected = slow_pairs(encoder, margin=margin, k=1 if margin == "none" else k, one_to_one=one_to_one)
    found = read_output(output)
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    assert [row[0] for row in found] == pytest.approx([row[0] for row in expected], abs=1e-5)
    assert 15 < len(expected) < 45
    assert [path.name for path in output.parent.iterdir()] == ["pairs.tsv"]  # the vectors are gone


def test_threshold_and_report(
    argv: list[str],
    texts: tuple[Path, Path],
    output: Path,
    capsys: pytest.CaptureFixture[str],
    refusal: Refusal,
) -> None:
    run(argv)
    rows = read_output(output)
    assert "exists; give another --output, or --overwrite true" in refusal(argv, main=MAIN)
    assert read_output(output) == rows
    argv += ["--overwrite", "true"]
    run([*argv, "--threshold", str(rows[9][0] - 1e-6)])
    assert read_output(output) == rows[:10]
    assert "pairs.tsv: 10 pairs of 30 and 25 distinct sentences\n" in capsys.readouterr().out
    before = texts[0].read_bytes()
    assert "is one of the texts that are read" in refusal([*argv, "--output", str(texts[0])], main=MAIN)
    assert texts[0].read_bytes() == before


def test_beyond_the_limit_faiss_finds_the_same_and_it_is_said(
    argv: list[str], encoder: Encoder, output: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("faiss", reason="faiss is not installed (the extra eval)")
    monkeypatch.setattr(mining, "EXACT_LIMIT", 29)
    run(argv)
    found = {row[1:]: row[0] for row in read_output(output)}
    expected = {row[1:]: row[0] for row in slow_pairs(encoder, margin="ratio", k=4, one_to_one=True)}
    # All lists are searched, but in fp16: scores move in the fourth digit, and so a near tie may.
    common = found.keys() & expected.keys()
    assert len(common) >= 0.9 * max(len(found), len(expected))
    assert [found[key] for key in common] == pytest.approx([expected[key] for key in common], abs=2e-3)
    assert "the search was approximate" in capsys.readouterr().out


def test_vectors_lie_in_the_file(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = sentences()
    monkeypatch.setattr(encoding, "SENTENCES_PER_WINDOW", 7)
    vectors = encode_to_file(encoder, source, tmp_path / "v", layer=2, pooling="mean", dtype=np.float16)
    expected = torch.nn.functional.normalize(encoder.encode(source, layer=2), dim=-1)
    torch.testing.assert_close(vectors, expected.half(), rtol=0, atol=1e-3)
    assert (tmp_path / "v").stat().st_size == 30 * 16 * 2
    stored = np.fromfile(tmp_path / "v", dtype=np.float16).reshape(30, 16)
    assert np.array_equal(stored, vectors.numpy())


def test_sides_of_one_sentence() -> None:
    pairs = mine(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]), margin="ratio", k=4, search="exact")
    assert (pairs.source.tolist(), pairs.target.tolist(), pairs.score.tolist()) == ([0], [0], [1.0])


# ----------------------------------------------------------------------------------------------- what is read


def test_sentences_are_read_in_order_once_without_breaks(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("b\n a\tc \n\nb\na c\nz\u2028z\n".encode())
    assert read_distinct(str(path)) == ["b", "a c", "z\u2028z"]
    (tmp_path / "de.tsv").write_text("1\tAtem\n2\tBaum\n")
    (tmp_path / "x.de.jsonl").write_text('{"text": "Haus"}\n')
    assert read_distinct(str(tmp_path / "de.tsv")) == ["Atem", "Baum"]
    assert read_distinct(f"de={tmp_path / 'x.de.jsonl'}") == ["Haus"]


def test_lines_and_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    for content, message in (
        (b"a\n\xff\nb\n", "line 2: invalid UTF-8.*--on_bad_line skip"),
        (b"\n \n", "holds no sentence"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_distinct(str(path))
    path.write_bytes(b"a\n\xff\nb\n")
    assert read_distinct(str(path), "skip") == ["a", "b"]


# -------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--layer 4", "layer must be in 0..3, found 4"),
        ("--model_name_or_path nowhere/at/all", "cannot be loaded"),
        ("--target missing.txt", "missing.txt: no such file"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    argv: list[str], output: Path, flags: str, message: str, refusal: Refusal
) -> None:
    assert message in refusal([*argv, *flags.split()], main=MAIN)
    assert not output.parent.exists()


def test_a_full_disk_is_said_before_vectors_are_written_to_it(tmp_path: Path) -> None:
    """A page of a mapped file for which there is no room ends the process by a signal."""

    class Tiny:
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=64))

    options = {"layer": 1, "pooling": "mean", "dtype": np.float32}
    with file_size_limit(1000), pytest.raises(DiskFullError, match="source cannot be written"):
        encode_to_file(Tiny(), ["a"] * 100, tmp_path / "source", **options)  # type: ignore[arg-type]


def test_two_texts_are_needed() -> None:
    for texts in ({"source": "one.txt"}, {}, {"source": "a", "target": ""}):
        with pytest.raises(ValueError, match="infoxlm mine SOURCE TARGET"):
            MiningArguments(**texts)

"""`infoxlm align-words`: links, scores by layer, and input that cannot be used."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_alignment import SOURCES, TARGETS, save_sub_word_encoder
from tiny_pretraining import Refusal

from modeling_infoxlm.commands import align_words
from modeling_infoxlm.evaluation.alignment.scoring import alignment_rates, alignment_scores
from modeling_infoxlm.evaluation.alignment.word_aligner import WordAligner
from modeling_infoxlm.evaluation.encoders import EncoderArguments, load_encoder
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import run_main
from modeling_infoxlm.runs.provenance import read_result

LINKS, RESULT = "word_alignment-xx-yy.txt", "word_alignment_results.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sub_word_encoder(tmp_path_factory.mktemp("model") / "xlmr")


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return path


def texts(folder: Path) -> list[str]:
    """Flags of two files of sentences."""
    source, target = (
        write(folder / name, "".join(f"{' '.join(words)}\n" for words in side))
        for name, side in (("test.xx", SOURCES), ("test.yy", TARGETS))
    )
    return ["--source_file", str(source), "--target_file", str(target)]


def test_links_serve_as_their_own_gold(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model_name_or_path", str(folder), *texts(tmp_path)]
    assert run_main(align_words.run, [*common, "--output_dir", str(tmp_path / "links")]) == 0
    (links,) = (tmp_path / "links").iterdir()  # without gold there is no result
    assert links.name == LINKS
    aligner = WordAligner(load_encoder(EncoderArguments(model_name_or_path=str(folder))))
    found = aligner.align(SOURCES, TARGETS)
    expected = [by_layer[2] for by_layer in found]  # two thirds of three layers
    assert links.read_text().split("\n") == [
        *(" ".join(f"{i}-{j}" for i, j in sorted(one)) for one in expected),
        "",
    ]

    scored = [*common, "--gold_file", str(links), "--output_dir", str(tmp_path / "scored")]
    capsys.readouterr()
    assert run_main(align_words.run, scored) == 0
    assert (tmp_path / "scored" / LINKS).read_text() == links.read_text()
    result = read_result(tmp_path / "scored" / RESULT)
    assert result["task"] == "word_alignment" and result["metric"] == "aer"
    assert result["settings"] == {
        "method": "ot", "context": "pair", "layer": 2, "sinkhorn_iter": 2, "bf16": False,
    }  # fmt: skip
    assert result["command"] == ["infoxlm", "align-words", *scored]
    rate = result["scores"]["xx-yy"]["aer"]
    assert (rate["value"], rate["low"], rate["count"]) == (0, 0, 5) and 40 < rate["high"] < 60
    layers = result["details"]["layers"]["xx-yy"]
    assert list(layers) == ["0", "1", "2", "3"] and layers["2"] == result["scores"]["xx-yy"]
    for layer in (0, 1, 3):
        counts = [alignment_scores(by_layer[layer], by_layer[2], ()) for by_layer in found]
        for metric, rate in alignment_rates(np.sum(counts, axis=0)).items():
            assert layers[str(layer)][metric]["value"] == pytest.approx(float(rate))
    assert layers["0"]["aer"]["value"] > 0
    assert "*2 │  0.0 │     100.0" in capsys.readouterr().out


def test_joined_file_gives_the_same_links_and_nothing_is_replaced_unasked(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [f"{' '.join(a)} ||| {' '.join(b)}\n" for a, b in zip(SOURCES, TARGETS, strict=True)]
    joined = write(tmp_path / "joined.txt", "".join(pairs))
    common = ["--model_name_or_path", str(folder), "--method", "itermax", "--layer", "1"]
    two = [*common, *texts(tmp_path), "--output_dir", str(tmp_path / "two")]
    one = [*common, "--pairs_file", str(joined), "--pair", "xx-yy", "--output_dir", str(tmp_path / "one")]
    align_words.run(two)
    align_words.run(one)
    links = (tmp_path / "two" / LINKS).read_text()
    assert (tmp_path / "one" / LINKS).read_text() == links
    with pytest.raises(UsageError, match=f"{LINKS} exists; give another --output_dir"):
        align_words.run(two)
    align_words.run([*two, "--overwrite_output_dir", "true", "--method", "argmax"])
    assert (tmp_path / "two" / LINKS).read_text() != links
    write(joined, f"{'w4 ' * 60}||| w5\nw6 ||| w7\n")
    align_words.run([*one, "--overwrite_output_dir", "true"])
    assert "1 pairs are longer than the model's 40 tokens" in caplog.text


def test_folder_of_test_sets_gives_a_score_for_each_pair(folder: Path, tmp_path: Path) -> None:
    sets, out = tmp_path / "alignment-test-sets", tmp_path / "out"
    for name, gold in (("de-en", "1 1 1 S\n"), ("en-fr", "1 1 1 S\n1 2 1 P\n4 1 1 S\n")):
        texts(sets / name)
        for old, new in zip(("xx", "yy"), name.split("-"), strict=True):
            (sets / name / f"test.{old}").rename(sets / name / f"test.{new}")
        write(sets / name / "alignv2.txt", gold)
    align_words.run(["--model_name_or_path", str(folder), "--test_dir", str(sets), "--output_dir", str(out)])
    result = read_result(out / RESULT)
    counts = {name: rates["aer"]["count"] for name, rates in result["scores"].items()}
    assert counts == {"de-en": 1, "en-fr": 2}
    assert result["dataset"]["name"] == "alignment-test-sets" and len(result["dataset"]["files"]) == 6
    assert result["details"]["sentences_without_gold"] == {"de-en": 4, "en-fr": 3}
    values = [rates["aer"]["value"] for rates in result["scores"].values()]
    assert result["summary"] == {"mean": pytest.approx(np.mean(values))}
    names = {path.name for path in out.glob("*.txt")}
    assert names == {"word_alignment-de-en.txt", "word_alignment-en-fr.txt"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--source_file {dir}/test.xx", "give the sentences one way"),
        ("--pairs_file {dir}/test.xx --test_dir {dir}", "give the sentences one way"),
        ("--pairs_file {dir}/missing", "missing: cannot be read .*No such file"),
        ("--pairs_file {dir}/test.xx", r"line 1: expected `source \|\|\| target`, found 1 parts"),
        ("--source_file {dir}/test.xx --target_file {dir}/short", "5 lines but .*short has 1"),
        ("--pairs_file {dir}/empty", "empty is empty"),
        ("--pairs_file {dir}/binary", "binary line 1: invalid UTF-8, byte 0xff at position 1"),
        ("--test_dir {dir}", "holds no folder of a pair"),
        ("--test_dir {dir}/sets", "de-en holds no gold; expected alignv2.txt or gold.txt"),
        ("{texts} --gold_file {dir}/bad-gold", "bad-gold line 1: target word 7 does not exist"),
        ("{texts} --gold_file {dir}/no-gold", "no-gold holds no link"),
        ("{texts} --layer 9", r"layer must be in 0\.\.3, found 9"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, flags: str, message: str, refusal: Refusal
) -> None:
    both = " ".join(texts(tmp_path))
    files = {"short": b"w4\n", "empty": b"", "binary": b"a\xff\n", "bad-gold": b"0-7\n\n\n\n\n"}
    for name, content in {**files, "no-gold": b"\n\n\n\n\n"}.items():
        write(tmp_path / name, content)
    texts(tmp_path / "sets" / "de-en")
    argv = flags.format(dir=tmp_path, texts=both).split()
    argv += ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "out")]
    assert re.search(message, refusal(argv, main=partial(run_main, align_words.run)))
    assert not (tmp_path / "out").exists()

"""What is held out or a duplicate: nothing held out is trained on, in whatever spelling."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_prepare import Run, Texts, WriteLines, numbered

from modeling_infoxlm.runs.errors import DataError


def test_nothing_held_out_is_trained_on(
    run: Run, write_lines: WriteLines, multiway: list[Path], texts: Texts
) -> None:
    mono = [
        write_lines(f"mono.{language}.txt", numbered(f"{language} word", 200)) for language in ("de", "sw")
    ]
    # upper case and full-width forms are the same sentence for this purpose
    mono.append(write_lines("mono.en.txt", [f"ＷORD {number}" for number in range(200)]))
    corpus = run(multiway, mono, heldout_fraction=0.2, mono_from_bitext=True)
    selected = {source for source, _ in corpus.heldout_text("en-de")}
    assert 20 < len(selected) < 60
    for pair in ("en-fr", "en-sw"):
        assert {source for source, _ in corpus.heldout_text(pair)} == selected
    secret = {text for pair in corpus.heldout for texts in corpus.heldout_text(pair) for text in texts}
    for pair, store in corpus.bitext.items():
        trained = {*texts(store.source), *texts(store.target)}
        assert trained and not trained & secret
        entry = corpus.manifest["bitext"][pair]
        assert entry["num_examples"] + entry["dropped"]["heldout"] == 200
    lowered = {text.lower() for text in secret}
    for blocks in corpus.mono.values():
        sentences = {s.strip().lower() for t in texts(blocks) for s in t[3:].split("</s>")}
        assert len(sentences) > 50 and not sentences & lowered
    assert corpus.manifest["mono"]["en"]["dropped"]["heldout"] == len(selected)
    # fr-de has no English side: its French side decides, and what it selects is kept out of en-fr too
    assert not {source for source, _ in corpus.heldout_text("fr-de")} & set(
        texts(corpus.bitext["en-fr"].target)
    )


# What the letter tokenizer drops or merges: spaces, and all letters that it does not know.
SAME_TO_THE_MODEL = {
    "double space": lambda text: text.replace(" ", "  "),
    "no-break space": lambda text: text.replace(" ", "\u00a0"),
    "line separator": lambda text: text.replace(" ", "\u2028 "),
    "an unknown letter": lambda text: f"{text} \u0e01",
    "capitals": str.upper,
    # Which it sees, as <unk>, where a reader sees nothing.
    "soft hyphens": lambda text: text.replace("o", "o\u00ad"),
}


@pytest.mark.parametrize("kind", SAME_TO_THE_MODEL)
def test_what_is_held_out_is_not_trained_on_in_another_spelling(
    run: Run, write_lines: WriteLines, kind: str
) -> None:
    change = SAME_TO_THE_MODEL[kind]
    english = [f"{text} \u0e02" if kind == "an unknown letter" else text for text in numbered("word", 100)]
    paths = [
        write_lines("en-de.tsv", (f"{text}\tde {number}" for number, text in enumerate(english))),
        write_lines("en-fr.tsv", (f"{change(text)}\tfr {n}" for n, text in enumerate(numbered("word", 100)))),
    ]
    corpus = run(paths, [write_lines("en.txt", map(change, numbered("word", 100)))], heldout_fraction=0.2)
    held = {tuple(corpus.heldout["en-de"].source[i].tolist()) for i in range(len(corpus.heldout["en-de"]))}
    assert 10 < len(held) < 40
    for entry in (corpus.manifest["bitext"]["en-fr"], corpus.manifest["mono"]["en"]):
        assert entry["dropped"]["heldout"] >= len(held)
    trained = corpus.bitext["en-fr"].source
    assert not held & {tuple(trained[i].tolist()) for i in range(len(trained))}


def test_duplicates_and_identical_sides_are_told_by_ids_within_and_across_files(
    run: Run, write_lines: WriteLines
) -> None:
    one = write_lines("a.en-de.tsv", ["one two\teins", "one  two\teins", "x \u0e01\tx  \u0e02", "b\tc"])
    two = write_lines("b.en-de.tsv", ["b\u00a0\tc", "one\u3000two\teins", "new\tneu"])
    mono = [write_lines("a.de.txt", ["ein Satz", "eins"]), write_lines("b.de.txt", ["ein  Satz", "zwei"])]
    corpus = run([one, two], mono, mono_from_bitext=True)
    assert corpus.manifest["bitext"]["en-de"]["dropped"] == {"duplicate": 3, "identical_sides": 1}
    assert corpus.manifest["mono"]["de"]["dropped"] == {"duplicate": 1}
    assert corpus.manifest["bitext"]["en-de"]["num_examples"] == 3
    assert corpus.manifest["mono"]["de"]["num_sentences"] == 3 + 2  # "eins" of a pair stands in a.de.txt
    everything = run([one, two], mono, deduplicate=False, output_dir=corpus.folder.with_name("all"))
    assert everything.manifest["bitext"]["en-de"]["num_examples"] == 6


def test_heldout_ids_and_text_agree_and_are_limited(run: Run, multiway: list[Path], texts: Texts) -> None:
    corpus = run(multiway, heldout_fraction=0.2, heldout_max_pairs=7)
    everything = run(multiway, heldout_fraction=0.2, output_dir=corpus.folder.with_name("all"))
    for pair, store in corpus.heldout.items():
        assert len(store) == 7
        sides = zip(texts(store.source), texts(store.target), strict=True)
        assert list(sides) == corpus.heldout_text(pair)
        assert corpus.heldout_text(pair) == everything.heldout_text(pair)[:7]
        # the limit is one of evaluation only: what was selected beyond it is not trained on either
        few, many = (one.bitext[pair] for one in (corpus, everything))
        assert texts(few.source) == texts(many.source) and texts(few.target) == texts(many.target)
    others = run(multiway, heldout_fraction=0.2, prepare_seed=1, output_dir=corpus.folder.with_name("other"))
    assert set(others.heldout_text("en-de")) != set(everything.heldout_text("en-de"))


def test_heldout_pairs_are_usable_and_distinct(run: Run, write_lines: WriteLines) -> None:
    english = numbered("word", 60)
    lines = [f"{text}\tja" for text in english[:30]] + [f"{text}\tnein {text}" for text in english[30:]]
    lines += [f"{text}\tdoch {text}" for text in english] + [f"{text}\t{'x' * 60} {text}" for text in english]
    corpus = run([write_lines("en-de.tsv", lines)], heldout_fraction=0.5, max_seq_length=64)
    pairs = corpus.heldout_text("en-de")
    assert len({source for source, _ in pairs}) == len({target for _, target in pairs}) == len(pairs) > 10


def test_two_equal_sides_are_refused(run: Run, write_lines: WriteLines, tmp_path: Path) -> None:
    text = numbered("word", 50)
    write_lines("x.en", text)
    write_lines("x.de", [*text[:46], *numbered("Wort", 4)])
    with pytest.raises(DataError, match="both sides are the same in 46 of 50 pairs of en-de"):
        run([f"{tmp_path}/x.en,{tmp_path}/x.de"])
    assert not list((tmp_path / "out").rglob("*.tokens"))
    write_lines("x.de", [*text[:45], *numbered("Wort", 5)])
    assert len(run([f"{tmp_path}/x.en,{tmp_path}/x.de"]).bitext["en-de"]) == 5

"""Public test sets, known by their content: which results are of a whole one, and what the Hub calls it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _digests(table: str) -> dict[str, frozenset[str]]:
    """`language digest digest, ...`: the first digits of the sha256 of the files of each language."""
    rows = [row.split() for row in table.split(",") if row.strip()]
    return {language: frozenset(digests) for language, *digests in rows}


_DIGITS = 12  # of a hash, below
# xx-en.xx and xx-en.en of LASER, data/tatoeba/v1, in XTREME's languages.
_TATOEBA = """
    af 7bb9e073ad84 0b700c125efb, ar e67a0ae072b7 3c11838c963f, bg f9fa90cf3599 4b03b3b52ffb,
    bn ac3385695d6a 67fbe75fec54, de edfa6f75a425 eb9cc83a42f2, el 4fb3d3d30bda 1f630710e718,
    es f9628cea4048 89e4470f4572, et 94856999ef35 bb033b105961, eu 4255fb70a6c2 1e80f0174ad5,
    fa f15537137234 b5c6cf8c8d93, fi 8db3c734f755 322e610359f4, fr 644172ff9642 5634220f8a26,
    he 4a07ca4b8a6f 73c27ed0f76c, hi 15e4fb0a394b adfce2269a55, hu 56bd0682be8c 5323266e91dd,
    id 4f03cd70cba0 62a3f5127b60, it 9b3f369d0ed9 738bf8f981e4, ja 56040bd69491 b42129b34e1b,
    jv ad88399db8f9 172776353690, ka 6ef69b5efbf3 d70a14aa64fd, kk f20c682582a8 0ab684e7032c,
    ko e550c84184ec f900cf3c9b72, ml 1a896f54f85a 4d80cdbb844c, mr b2931584fbe6 709d09b697dc,
    nl d564d4ce1c62 3b8836749df5, pt b0c926a232c9 deb4568cfb7b, ru 446ff2cae660 7b26f52d6085,
    sw 1c672915446c e8539647caff, ta bde87fb1dded e7c5106acdd1, te 7e1a1bcd106c 1efc2ef57d9b,
    th 65c7b3c01a56 2881c82d2c5f, tl f99165dc0519 e7c9beda3f30, tr 1ffa0acc0060 a768df7dd3d1,
    ur 2efc22dc6188 dab35fda3f73, vi 6dbb02d778b0 a1f60bd8ae6c, zh 965d033966fc 29ba36232488,
"""
# xquad.xx.json of google-deepmind/xquad.
_XQUAD = """
    ar abdabd7afed5, de 990b5d746746, el 821cf0f88e73, en e4c57d1c9143, es dcbae93ec3a9, hi df2cce3532b3,
    ro 94f8d54e93ad, ru 208d5b1aa154, th 5cdda11d0e1e, tr 92179a564774, vi f619a1eb11fb, zh 691d0b3359bc,
"""


@dataclass(frozen=True)
class Benchmark:
    """A public test set.

    Attributes:
        title: For tables.
        repo_id: Its dataset on the Hub.
        config: Name of a language's part there.
        split: The same.
        task_type: The Hub's word for the task.
        metric: What is measured there, by the metric's name in our results; None if we measure nothing that
            is the same number.
        scoring_rules: By which it is measured, where there are several.
        sizes: Items of each language; of all languages at once under "". Empty: no program measures a part.
        files: First digits of the hashes of each language's files, where known.
    """

    title: str
    repo_id: str
    config: str
    task_type: str
    metric: str | None
    split: str = "test"
    scoring_rules: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, frozenset[str]] = field(default_factory=dict)


# Sizes. XNLI: arXiv 1809.05053; MLQA: arXiv 1910.07475, table 2; XQuAD: arXiv 1910.11856.
BENCHMARKS = {
    "xnli": Benchmark("XNLI", "facebook/xnli", "{0}", "text-classification", "accuracy", sizes={"": 5010}),
    "mlqa": Benchmark(
        "MLQA",
        "facebook/mlqa",
        "mlqa.{0}.{0}",
        "question-answering",
        "f1",
        scoring_rules="mlqa",
        sizes={"ar": 5335, "de": 4517, "en": 11590, "es": 5253, "hi": 4918, "vi": 5495, "zh": 5137},
    ),
    "xquad": Benchmark(
        "XQuAD",
        "google/xquad",
        "xquad.{0}",
        "question-answering",
        "f1",
        split="validation",
        scoring_rules="squad",
        sizes={"": 1190},
        files=_digests(_XQUAD),
    ),
    # There F1 is measured, in one direction; ours is the accuracy of both.
    "tatoeba": Benchmark(
        "Tatoeba",
        "mteb/tatoeba-bitext-mining",
        "{0}",
        "sentence-similarity",
        None,
        files=_digests(_TATOEBA),
    ),
}


def whole_test_sets(result: Mapping[str, Any]) -> list[str]:
    """Languages that were measured on all of a public test set.

    Whether it is one is told by its content, the hashes of its files or its dataset on the Hub and a commit
    of it, and never by a name that a file or folder may have.

    Args:
        result: Content of a result file.
    """
    benchmark = BENCHMARKS.get(result["task"])
    return (
        []
        if benchmark is None
        else [one for one in sorted(result["scores"]) if _is_whole(one, result, benchmark)]
    )


def comparable_sets(result: Mapping[str, Any]) -> list[str]:
    """Those of them whose headline is the very number that the Hub's dataset is measured by."""
    benchmark = BENCHMARKS.get(result["task"])
    if benchmark is None or result["metric"] != benchmark.metric:
        return []
    # Results that do not say it were scored by MLQA's rules.
    if benchmark.scoring_rules not in (None, result["settings"].get("scoring_rules", "mlqa")):
        return []
    return whole_test_sets(result)


def _is_whole(language: str, result: Mapping[str, Any], benchmark: Benchmark) -> bool:
    if "-" in language:  # question and context in different languages
        return False
    dataset = result["dataset"]
    is_on_hub = dataset["revision"] is not None and dataset.get("repo_id") == benchmark.repo_id
    known = benchmark.files.get(language)
    found = {digest[:_DIGITS] for digest in dataset["files"].values()}
    if not is_on_hub and (known is None or not known <= found):
        return False
    count = result["scores"][language][result["metric"]]["count"]
    return benchmark.sizes.get(language, benchmark.sizes.get("", count)) == count

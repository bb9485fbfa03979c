"""The model in examples/models: pinned vectors, translations found, a card made of its files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from modeling_infoxlm import InfoXLMModel, encode_texts
from modeling_infoxlm.hub.card import CARD_NAME
from modeling_infoxlm.hub.checkup import check_checkpoint
from modeling_infoxlm.hub.release import complete_release, list_release

ROOT = Path(__file__).parents[2]
NAME = "examples/models/infoxlm-tiny"
FOLDER = ROOT / NAME
GOLDEN = Path(__file__).with_name("infoxlm_tiny.json")
ENGLISH = [
    "Where is the train station?",
    "I would like a cup of tea.",
    "The children are playing in the garden.",
]
TRANSLATIONS = {
    "ar": ["أين محطة القطار؟", "أريد كوبًا من الشاي.", "الأطفال يلعبون في الحديقة."],
    "bg": ["Къде е гарата?", "Бих искал чаша чай.", "Децата играят в градината."],
    "de": ["Wo ist der Bahnhof?", "Ich hätte gern eine Tasse Tee.", "Die Kinder spielen im Garten."],
    "el": ["Πού είναι ο σταθμός του τρένου;", "Θα ήθελα ένα φλιτζάνι τσάι.", "Τα παιδιά παίζουν στον κήπο."],
    "es": [
        "¿Dónde está la estación de tren?",
        "Me gustaría una taza de té.",
        "Los niños juegan en el jardín.",
    ],
    "fr": ["Où est la gare ?", "Je voudrais une tasse de thé.", "Les enfants jouent dans le jardin."],
    "hi": ["रेलवे स्टेशन कहाँ है?", "मुझे एक कप चाय चाहिए।", "बच्चे बगीचे में खेल रहे हैं।"],
    "ru": ["Где находится вокзал?", "Я бы хотел чашку чая.", "Дети играют в саду."],
    "sw": ["Kituo cha treni kiko wapi?", "Ningependa kikombe cha chai.", "Watoto wanacheza kwenye bustani."],
    "th": ["สถานีรถไฟอยู่ที่ไหน", "ฉันอยากได้ชาหนึ่งถ้วย", "เด็ก ๆ กำลังเล่นอยู่ในสวน"],
    "tr": ["Tren istasyonu nerede?", "Bir fincan çay istiyorum.", "Çocuklar bahçede oynuyor."],
    "ur": ["ریلوے اسٹیشن کہاں ہے؟", "مجھے ایک کپ چائے چاہیے۔", "بچے باغ میں کھیل رہے ہیں۔"],
    "vi": ["Ga tàu ở đâu?", "Tôi muốn một tách trà.", "Bọn trẻ đang chơi trong vườn."],
    "zh": ["火车站在哪里？", "我想要一杯茶。", "孩子们在花园里玩。"],
}


@pytest.fixture(scope="module")
def vectors() -> dict[str, torch.Tensor]:
    """Vectors of length 1 of each language's sentences, (3, 256)."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = InfoXLMModel.from_pretrained(FOLDER, dtype=torch.float32)
    texts = {"en": ENGLISH, **TRANSLATIONS}
    return {name: encode_texts(model, tokenizer, own, normalize=True) for name, own in texts.items()}


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_translations_are_found(vectors: dict[str, torch.Tensor], language: str) -> None:
    cosines = vectors["en"] @ vectors[language].T
    assert cosines.argmax(0).tolist() == cosines.argmax(1).tolist() == [0, 1, 2]


def test_vectors_are_pinned(vectors: dict[str, torch.Tensor]) -> None:
    expected = json.loads(GOLDEN.read_text())
    assert expected.keys() == vectors.keys()
    for language, numbers in expected.items():
        torch.testing.assert_close(vectors[language][:, :8], torch.tensor(numbers), atol=1e-4, rtol=0)


def test_it_is_small_whole_and_described_by_its_files(tmp_path: Path) -> None:
    files = list_release(FOLDER)
    assert sum(path.stat().st_size for path in files.values()) <= 20_000_000
    assert "fail" not in {finding.level for finding in check_checkpoint(FOLDER, list(files))}
    copy = shutil.copytree(FOLDER, tmp_path / "copy")
    (copy / CARD_NAME).unlink()
    complete_release(copy, copy, repo_id=NAME, license="apache-2.0")
    assert (copy / CARD_NAME).read_text() == (FOLDER / CARD_NAME).read_text()
    assert (copy / "release.json").read_text() == (FOLDER / "release.json").read_text()


def test_what_the_readme_says_of_it_stands_in_its_result_file() -> None:
    result = json.loads((FOLDER / "results" / "tatoeba_results.json").read_text())
    assert (
        f"finds {result['summary']['mean_14']:.1f} % of the translations" in (ROOT / "README.md").read_text()
    )

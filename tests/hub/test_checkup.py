"""A checkpoint in order is said to be; each damage is found by the check that is meant for it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_encoder import word_tokenizer
from tiny_heads import tampered
from tiny_release import CARD, CHECKS, write_release
from tiny_run import tiny_model
from transformers import AutoTokenizer, BertConfig, XLMRobertaConfig, XLMRobertaModel

from modeling_infoxlm.hub.checkup import Finding, check_card, check_checkpoint
from modeling_infoxlm.hub.formats import save_as_xlm_roberta

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain release with nothing wrong; not to be changed."""
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def folder(release: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(release, tmp_path / "copy"))


def examine(folder: Path) -> dict[str, Finding]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    return {finding.check: finding for finding in check_checkpoint(folder, names)}


def edit_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_release_with_nothing_wrong_passes(release: Path) -> None:
    findings = examine(release)
    assert list(findings) == CHECKS
    assert {finding.level for finding in findings.values()} == {"ok"}, findings
    assert "XLMRobertaForMaskedLM" in findings["keys"].text and "60 tokens" in findings["tokenizer"].text


def test_a_folder_with_its_code_and_split_weights_passes(release: Path, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="10KB")
    AutoTokenizer.from_pretrained(release).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(CARD)
    findings = examine(tmp_path)
    assert {finding.level for finding in findings.values()} == {"ok"}, findings
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert "8 classes" in findings["code"].text and "InfoXLMForPreTraining" in findings["keys"].text


def test_what_is_unusual_but_in_order(folder: Path, tmp_path: Path) -> None:
    """An encoder without the untrained pooler, code that would do harm where it was run, no card."""
    config = XLMRobertaConfig.from_pretrained(folder)
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    code(f"open({str(tmp_path / 'was-run')!r}, 'w')\nclass Model: pass")(folder)
    edit_json(folder / "tokenizer_config.json", model_max_length=100_000)
    findings = examine(folder)
    assert (findings["keys"].level, findings["keys"].text) == ("ok", "all of XLMRobertaModel, and no others")
    assert findings["code"].level == "ok" and not (tmp_path / "was-run").exists()
    assert findings["tokenizer"].level == "warn"
    assert "set model_max_length to 512" in findings["tokenizer"].text
    (folder / "README.md").unlink()
    assert check_card(folder).level == "warn"
    (folder / WEIGHTS).rename(folder / "model.onnx")
    findings = examine(folder)
    assert findings["weights"].level == "warn" and "vectors" not in findings
    assert all(finding.level != "fail" for finding in findings.values())


def test_what_cannot_be_read_is_not_read_further(folder: Path) -> None:
    cut_off(folder, 0.9)
    assert not {"keys", "vectors"} & set(examine(folder))
    (folder / "config.json").unlink()
    assert list(examine(folder)) == CHECKS[:4]


Damage = Callable[[Path], object]


def cut_off(folder: Path, share: float) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(len(content) * share)])


def write(name: str, text: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")

    return damage


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def configure(**fields: object) -> Damage:
    return lambda folder: edit_json(folder / "config.json", **fields)


def weights(name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Damage:
    return lambda folder: tampered(folder / WEIGHTS, name, change)


def index_of(part: str) -> str:
    return json.dumps({"weight_map": {"roberta.a": part}})


def code(text: str, reference: str = "model_code.Model") -> Damage:
    def damage(folder: Path) -> None:
        edit_json(folder / "config.json", auto_map={"AutoModel": reference})
        (folder / "model_code.py").write_text(text)

    return damage


EMBEDDINGS, DENSE = "roberta.embeddings.word_embeddings.weight", "lm_head.dense.weight"
# What is not in order: the change, the check that must find it, and what it must say.
DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "pickle below": (write("sub/model.PTH", "x"), "pickles", "sub/model.PTH"),
    "cut off": (lambda folder: cut_off(folder, 0.9), "weights", "bytes, its header promises"),
    "no safetensors": (write(WEIGHTS, "12345678{}"), "weights", "no safetensors file"),
    "no weights": (remove(WEIGHTS), "weights", "there is no model.safetensors"),
    "part missing": (write(f"{WEIGHTS}.index.json", index_of("b.safetensors")), "weights", "b.safe"),
    "part without": (write(f"{WEIGHTS}.index.json", index_of(WEIGHTS)), "weights", "not hold roberta"),
    "no metadata": (write("README.md", "# Title\n"), "card", "no metadata"),
    "bad YAML": (write("README.md", "---\na: [\n---\n"), "card", "cannot be read"),
    "no as a language": (write("README.md", "---\nlanguage: [en, no]\n---\n"), "card", "language"),
    "local base": (write("README.md", "---\nbase_model: /home/me/x\n---\n"), "card", "'/home/me/x'"),
    "bad index": (write("README.md", "---\nmodel-index: [{results: 3}]\n---\n"), "card", "cannot be read"),
    "no config": (remove("config.json"), "config", "cannot be loaded"),
    "bad config": (write("config.json", "{"), "config", "cannot be loaded"),
    "other type": (lambda folder: BertConfig().save_pretrained(folder), "config", "'bert'"),
    "no code": (configure(auto_map={"AutoModel": "none.Model"}), "code", "none.py is missing"),
    "no class": (code("class Other: pass"), "code", "has no class Model"),
    "no import": (code("from .other import x\nclass Model: pass"), "code", "other.py is missing"),
    "no Python": (code("class Model("), "code", "model_code.py is missing or no Python"),
    "foreign code": (code("", "org/evil--model_code.Model"), "code", "no class of this folder"),
    "code elsewhere": (code("", "../model_code.Model"), "code", "no class of this folder"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer", "put the model's tokenizer"),
    "bad tokenizer": (write("tokenizer.json", "{"), "tokenizer", "cannot be loaded"),
    "other padding": (configure(pad_token_id=5), "tokenizer", "pad_token_id is 1, the model's 5"),
    "no mask": (lambda folder: word_tokenizer().save_pretrained(folder), "tokenizer", "no mask token"),
    "more tokens": (
        lambda folder: save_as_xlm_roberta(tiny_model(vocab_size=50), folder),
        "tokenizer",
        "ids go up to 59, the model's table has 50 rows",
    ),
    "missing": (weights(DENSE, None), "keys", f"missing: {DENSE}; unexpected: none"),
    "unexpected": (configure(architectures=["XLMRobertaModel"]), "keys", "missing: none; unexpected: lm_h"),
    "no architecture": (configure(architectures=["pipeline"]), "keys", "['pipeline']"),
    "NaN": (weights(EMBEDDINGS, lambda table: table.log()), "vectors", "NaN or infinite"),
    "collapsed": (weights(EMBEDDINGS, torch.zeros_like), "vectors", "has collapsed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_found_by_its_check(folder: Path, name: str) -> None:
    damage, check, text = DAMAGES[name]
    damage(folder)
    findings = examine(folder)
    assert findings[check].level == "fail" and text in findings[check].text
    assert [line for line in findings if findings[line].level == "fail"] == [check], findings
    assert not any("\n" in finding.text for finding in findings.values())

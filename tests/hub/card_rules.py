"""What the loopback Hub accepts as the metadata of a card: the YAML block at the top of README.md.

The rules are the Hub's, as far as its error messages are known; its lists of allowed licences, languages and
tasks are replaced by the form that their entries have.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

_BLOCK = re.compile(r"\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|$)", re.DOTALL)
_ID = r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9_][\w.\-]*)?"
# Form of the values; those of the first group may also be lists.
_LISTS = {
    "license": r"[a-z0-9.\-]+",
    "language": r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code",
    "tags": r".+",
    "datasets": _ID,
    "metrics": r".+",
    "base_model": _ID,
}
_TEXTS = {
    "pipeline_tag": r"[a-z0-9\-]+",
    "library_name": r"[A-Za-z0-9_.\-]+",
    "license_name": r"[a-z0-9.\-]+",
    "license_link": r".+",
    "base_model_relation": r"finetune|quantized|merge|adapter",
}


@dataclass
class FrontMatter:
    """The metadata of a card, and what is wrong with it."""

    content: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class _Yaml(yaml.SafeLoader):
    """YAML that refuses a key given twice, as the Hub's parser does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.YAMLError(f"duplicated mapping key: {twice[0]}")
        return super().construct_mapping(node, deep=deep)


def front_matter(text: str) -> FrontMatter:
    """Parse and check the metadata of a card."""
    block = _BLOCK.match(text)
    if block is None or not block[1].strip():
        return FrontMatter(warnings=["empty or missing yaml metadata in repo card"])
    try:
        content = yaml.load(block[1], Loader=_Yaml)
    except yaml.YAMLError as error:
        return FrontMatter(errors=[f"YAML metadata cannot be parsed: {' '.join(str(error).split())}"])
    if not isinstance(content, dict):
        return FrontMatter(errors=["YAML metadata must be a mapping"])
    return FrontMatter(content, [*_field_errors(content), *_index_errors(content.get("model-index"))])


def _field_errors(content: dict[str, Any]) -> list[str]:
    """Fields of the wrong type or form, such as the language `no` that YAML reads as false."""
    errors = []
    for name, pattern in (_LISTS | _TEXTS).items():
        value = content.get(name)
        values = value if isinstance(value, list) and name in _LISTS else [value]
        if value is not None and not all(isinstance(v, str) and re.fullmatch(pattern, v) for v in values):
            errors.append(f'"{name}" is not valid: {value!r}')
    return errors


def _index_errors(index: Any) -> list[str]:
    """What is wrong with the evaluation results of `model-index`."""
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        place = f"model-index[{i}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'"{place}.name" is required')
        elif not isinstance(model.get("results"), list):
            errors.append(f'"{place}.results" must be an array')
        else:
            for j, result in enumerate(model["results"]):
                errors += _result_errors(f"{place}.results[{j}]", result)
    return errors


def _result_errors(place: str, result: Any) -> list[str]:
    """A result needs its task, its dataset, and metrics with type and value."""
    if not isinstance(result, dict):
        return [f'"{place}" must be an object']
    needed = (("task", "type"), ("dataset", "type"), ("dataset", "name"))
    errors = [
        f'"{place}.{part}.{name}" is required'
        for part, name in needed
        if not isinstance((result.get(part) or {}).get(name), str)
    ]
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*errors, f'"{place}.metrics" must be an array of at least one']
    whole = all(isinstance(m, dict) and isinstance(m.get("type"), str) and "value" in m for m in metrics)
    return errors if whole else [*errors, f'"{place}.metrics" need a type and a value each']

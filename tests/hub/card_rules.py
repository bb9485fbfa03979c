"""What the loopback Hub refuses in the metadata of a card: the YAML block at the top of README.md.

The rules are the Hub's, as far as its error messages are known; its lists of allowed licences, languages and
tasks are replaced by the form that their entries have.
"""

import re

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

_BLOCK = re.compile(r"\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|$)", re.DOTALL)
_ID = r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9_][\w.\-]*)?"
# Form of the values, which may also be lists.
_FIELDS = {
    "license": r"[a-z0-9.\-]+",
    "language": r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code",
    "tags": r".+",
    "datasets": _ID,
    "metrics": r".+",
    "base_model": _ID,
    "pipeline_tag": r"[a-z0-9\-]+",
    "library_name": r"[A-Za-z0-9_.\-]+",
    "base_model_relation": r"finetune|quantized|merge|adapter",
}


def metadata_errors(text: str) -> list[str]:
    """What is wrong with the metadata of a card; nothing with a card that has none."""
    block = _BLOCK.match(text)
    if block is None or not block[1].strip():
        return []
    try:
        content = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"YAML metadata cannot be parsed: {' '.join(str(error).split())}"]
    if not isinstance(content, dict):
        return ["YAML metadata must be a mapping"]
    errors = []
    for name, pattern in _FIELDS.items():
        value = content.get(name)
        values = value if isinstance(value, list) else [value]
        # The language `no` is false in YAML.
        if value is not None and not all(isinstance(v, str) and re.fullmatch(pattern, v) for v in values):
            errors.append(f'"{name}" is not valid: {value!r}')
    try:
        model_index_to_eval_results(content.get("model-index", [{"name": "none", "results": []}]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        errors.append(f'"model-index" is not valid: {error!r}')
    return errors

"""Code in model cards: how to use a release, with its own name. Each is executed by a test."""

from collections.abc import Mapping
from typing import Any

_VECTORS = """
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}", add_pooling_layer=False)
texts = tokenizer(["How are you?", "Wie geht es dir?"], padding=True, return_tensors="pt")
with torch.no_grad():
    hidden = model(**texts, output_hidden_states=True).hidden_states[{layer}]
{pooling}
print(torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0))
"""

_POOLINGS = {
    "mean": """mask = texts["attention_mask"].unsqueeze(-1)
vectors = (hidden * mask).sum(dim=1) / mask.sum(dim=1)  # (2, {size})""",
    "cls": "vectors = hidden[:, 0]  # (2, {size})",
}

_CUSTOM_VECTORS = """
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
# The code of the model lies in the repository; give a revision once you have read it.
model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
texts = tokenizer(["How are you?", "Wie geht es dir?"], padding=True, return_tensors="pt")
with torch.no_grad():
    vectors = model.sentence_vectors(
        texts["input_ids"], texts["attention_mask"], layer={layer}, pooling="{pooling}"
    )  # (2, {size})
print(torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0))
"""

_FILL_MASK = """
from transformers import pipeline

fill_mask = pipeline("fill-mask", model="{name}"{trust})
for guess in fill_mask("Paris is the <mask> of France."):
    print(guess["token_str"], guess["score"])
"""

_FINE_TUNING = """
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}", num_labels=2{trust})
rows = Dataset.from_dict({{"text": ["a good film", "ein schlechter Film"], "label": [1, 0]}})  # your own
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True))
arguments = TrainingArguments("fine-tuned", num_train_epochs=3, learning_rate=2e-5)
Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer).train()
"""

_SENTENCE_TRANSFORMER = """
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
vectors = model.encode(["How are you?", "Wie geht es dir?"])  # (2, {size})
print(model.similarity(vectors, vectors))
"""

_ONNX = """
import numpy as np
import onnxruntime
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

folder = snapshot_download("{name}")
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(f"{{folder}}/model.onnx")
texts = tokenizer(["How are you?", "Wie geht es dir?"], padding=True, return_tensors="np")
inputs = {{given.name: texts[given.name].astype(np.int64) for given in session.get_inputs()}}
(output, *_) = session.run(None, inputs)
print(output.shape)
"""

_CLASSIFICATION = """
from transformers import pipeline

classify = pipeline("text-classification", model="{name}"{trust})
print(classify({{"text": "The cat sleeps.", "text_pair": "Ein Tier schläft."}}))
"""

_QUESTION_ANSWERING = """
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForQuestionAnswering.from_pretrained("{name}"{trust})
inputs = tokenizer("Wer wohnt in Berlin?", "Anna lives in Berlin, Ben in Rome.", return_tensors="pt")
with torch.no_grad():
    output = model(**inputs)
first, last = output.start_logits.argmax(), output.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))
"""


def usage(name: str, release: Mapping[str, Any], *, layer: int, pooling: str, size: int) -> dict[str, str]:
    """Headed snippets for a release.

    Args:
        name: Repository.
        release: `release.json`: format and architecture.
        layer: Layer of sentence vectors.
        pooling: `"mean"` or `"cls"`.
        size: Length of a vector.

    Returns:
        Python code by heading.
    """
    form, architecture = release["format"], release["architecture"]
    trust = ", trust_remote_code=True" if form == "infoxlm" else ""
    values = {"name": name, "layer": layer, "size": size, "trust": trust}
    if form == "sentence-transformers":
        return {"Sentence vectors": _fill(_SENTENCE_TRANSFORMER, values)}
    if form == "onnx":
        return {"With onnxruntime": _fill(_ONNX, values)}
    if architecture.endswith("ForSequenceClassification"):
        return {"Classification": _fill(_CLASSIFICATION, values)}
    if architecture.endswith("ForQuestionAnswering"):
        return {"Question answering": _fill(_QUESTION_ANSWERING, values)}
    if form == "infoxlm":
        vectors = _fill(_CUSTOM_VECTORS, {**values, "pooling": pooling})
    else:
        vectors = _fill(_VECTORS, {**values, "pooling": _POOLINGS[pooling].format(size=size)})
    has_head = architecture.endswith(("ForMaskedLM", "ForPreTraining"))
    return {
        "Sentence vectors": vectors,
        **({"Masked words": _fill(_FILL_MASK, values)} if has_head else {}),
        "Fine-tuning": _fill(_FINE_TUNING, values),
    }


def _fill(template: str, values: Mapping[str, Any]) -> str:
    return template.strip().format(**values)

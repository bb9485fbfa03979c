"""What a recipe makes of an encoder: sentence retrieval on a test set before the run and after it.

    python -m benchmarks.recipe recipes/align_encoder.yaml --model_name_or_path ENCODER \
        --bitext_files bitext/*.tsv.xz --data_dir tatoeba --languages sw ur th --output_dir outputs/recipe

The run is `run_pretraining.py`'s own and goes on after a kill. Flags that are not named here, such as
`--max_steps 300`, are handed to it. Both encoders are measured by `run_tatoeba.py`, with layer and pooling of
the contrast and, where they differ, with those of the run's held-out retrieval.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from modeling_infoxlm import InfoXLMConfig
from modeling_infoxlm.runs.files import write_json
from modeling_infoxlm.runs.provenance import describe_program
from modeling_infoxlm.runs.record import RUN_FILE


def measure(options: argparse.Namespace, training_flags: list[str]) -> dict[str, Any]:
    """Train, measure both encoders, and return what goes into the result file."""
    run = options.output_dir / "run"
    start = ["--model_name_or_path", options.model_name_or_path]
    text = ["--bitext_files", *options.bitext_files, "--output_dir", str(run)]
    _program("run_pretraining.py", "--config", str(options.recipe), *start, *text, *training_flags)
    record, config = _read(run / RUN_FILE), InfoXLMConfig.from_pretrained(run)
    contrast = {"layer": config.resolved_xlco_layer(), "pooling": config.xlco_pooling}
    vectors = [contrast, *(other for other in [record["heldout_vectors"]] if other and other != contrast)]
    models = {"before": options.model_name_or_path, "after": str(run)}
    return {
        "recipe": options.recipe.name,
        "training_flags": training_flags,
        "identity": record["identity"],
        "heldout": _read(run / "eval_results.json"),
        "retrieval": [
            {**where, **{when: _retrieval(options, name, when, **where) for when, name in models.items()}}
            for where in vectors
        ],
    }


def _retrieval(
    options: argparse.Namespace, model: str, when: str, *, layer: int, pooling: str
) -> dict[str, float]:
    """Accuracy in percent, mean of both directions, for each language and over them (`mean`)."""
    folder = options.output_dir / f"{when}-{layer}-{pooling}"
    _program(
        *("run_tatoeba.py", "--model_name_or_path", model, "--data_dir", str(options.data_dir)),
        *("--languages", *options.languages, "--layer", str(layer), "--pooling", pooling),
        *("--output_dir", str(folder), "--overwrite_output_dir", "true", "--bf16", "true"),
    )
    result = _read(folder / "tatoeba_results.json")
    scores = {language: result["scores"][language]["accuracy"]["value"] for language in options.languages}
    return {**scores, "mean": result["summary"]["mean"]}


def _program(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(Path(__file__).parents[1] / script), *arguments], check=True)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def show(result: dict[str, Any]) -> str:
    """A Markdown table for each kind of vectors."""
    tables = []
    for measured in result["retrieval"]:
        before, after = measured["before"], measured["after"]
        rows = [f"| {name} | {before[name]:.1f} | {after[name]:.1f} |" for name in before]
        title = f"| layer {measured['layer']}, {measured['pooling']} | before | after |"
        tables.append("\n".join([title, "| --- | ---: | ---: |", *rows]))
    return "\n\n".join(tables)


def parse_arguments(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and those that are handed to the training."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model_name_or_path", required=True, help="encoder to start from")
    parser.add_argument("--bitext_files", nargs="+", required=True, help="as of run_pretraining.py")
    parser.add_argument("--data_dir", type=Path, required=True, help="test set, as of run_tatoeba.py")
    parser.add_argument("--languages", nargs="+", required=True, help="languages of it, beside English")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/recipe"))
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure one recipe and write `recipe.json`."""
    options, training_flags = parse_arguments(argv)
    result = measure(options, training_flags)
    program = describe_program(sys.argv[1:] if argv is None else argv)
    write_json(options.output_dir / "recipe.json", {**program, **result})
    print(show(result))


if __name__ == "__main__":
    main()

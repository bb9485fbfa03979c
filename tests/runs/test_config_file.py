"""Recipes and flags: each test names a way in which a recipe could be read wrongly in silence."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from modeling_infoxlm.runs.config_file import parse_args_with_config


@dataclass
class Settings:
    _argument_group_name = "ours"

    language: str = field(default="en", metadata={"help": "Share of 15%% text."})
    languages: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [1])
    learning_rate: float = 1e-3
    steps: int = 10
    layer: int | None = 4
    pooling: Literal["cls", "mean"] = "cls"
    masking: bool = True
    prefill: bool = False
    report_to: None | str | list[str] = None
    extra: dict | str | None = None


@dataclass
class Other:
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("name is bad;\nexpected a good one.")


@dataclass
class Secret:
    hub_token: str | None = None


@pytest.fixture
def parse(tmp_path: Path):
    def parse_recipe(text: str, *flags: str, suffix: str = ".yaml") -> Settings:
        path = tmp_path / f"recipe{suffix}"
        path.write_text(text, encoding="utf-8")
        return parse_args_with_config([Settings, Other], ["--config", str(path), *flags])[0]

    return parse_recipe


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one line of a usage error."""
    with pytest.raises(SystemExit) as error:
        parse_args_with_config([Settings, Other], argv)
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize("code", ["no", "on", "y", "NO", "010", "12:30", "2024-01-01", "1e5", "0x1f"])
def test_text_stays_text_whatever_yaml_1_1_makes_of_it(parse, code):
    given = parse(f"language: {code}\nlanguages: [de, {code}]")
    assert given == Settings(language=code, languages=["de", code])


@pytest.mark.parametrize(
    ("recipe", "flags", "expected"),
    [
        ("learning_rate: 2e-4", "", {"learning_rate": 2e-4}),
        ("steps: 131_072\nsizes: [3, 4]", "", {"steps": 131072, "sizes": [3, 4]}),
        ("masking: false\nprefill: False", "", {"masking": False}),
        ('masking: "false"\nprefill: true', "", {"masking": False, "prefill": True}),
        ("layer: null", "", {"layer": None}),
        ("# nothing yet\n", "", {}),
        ("layer: null", "--layer 2", {"layer": 2}),
        ("languages: []\nsizes: []", "", {"languages": [], "sizes": []}),
        ("languages: de", "", {"languages": ["de"]}),
        ("languages: &l [de, fr]\nlanguage: &x xx\nextra: {a: *x}", "", {"languages": ["de", "fr"]}),
        ("report_to: [tensorboard, trackio]", "", {"report_to": ["tensorboard", "trackio"]}),
        ("extra: {power: 2e-1, names: [no, 1]}", "", {"extra": '{"power": 0.2, "names": ["no", 1]}'}),
        ("extra: {deep: {on: true}}", "", {"extra": '{"deep": {"on": true}}'}),
        ("language: -x", "", {"language": "-x"}),
        ("steps: 5\nlanguages: [de]", "--steps=7 --languages fr", {"steps": 7, "languages": ["fr"]}),
        ("masking: true", "--no_masking", {"masking": False}),
        ('{\n\t"learning_rate": 2e-4, "layer": null}', "JSON", {"learning_rate": 2e-4, "layer": None}),
    ],
)
def test_values_of_a_recipe_and_flags_before_them(parse, recipe, flags, expected):
    json_file = flags == "JSON"
    given = parse(recipe, *([] if json_file else flags.split()), suffix=".json" if json_file else ".yaml")
    assert {name: getattr(given, name) for name in expected} == expected
    if "extra" not in recipe:
        assert given == Settings(**expected)


def test_recipe_as_first_argument(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yml"
    path.write_text("steps: 5")
    assert parse_args_with_config([Settings], [str(path), "--layer", "1"]) == (Settings(steps=5, layer=1),)
    assert parse_args_with_config([Settings], [f"--config={path}"]) == (Settings(steps=5),)
    parsed = parse_args_with_config([Other, Settings], ["--name", "x"])
    assert parsed[0].name == "x" and parsed[1] == Settings()
    (tmp_path / "run.args").write_text("--steps 99")  # a stray file is not read
    monkeypatch.setattr("sys.argv", [str(tmp_path / "run.py")])
    assert parse_args_with_config([Settings], [])[0].steps == 10


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("learning_rat: 1", "unknown key learning_rat; did you mean learning_rate?"),
        ("learning_rate: -1", "learning_rate must be at least 0, found -1."),
        ("pooling: max", "invalid choice: 'max'"),
        ("masking: maybe", "Truthy value expected"),
        ("steps: null", "steps must have a value"),
        ("steps: [1, 2]", "steps takes one value, not a list of 2"),
        ("languages: [[de]]", "languages takes a flat list"),
        ("languages: {de: 1}", "languages takes a value, not a mapping"),
        ("steps: 1\nsteps: 2", "steps is given twice"),
        ("extra: {a: 1, a: 2}", "a is given twice"),
        ("- steps", "must be a mapping"),
        ("? [a]\n: 1", "malformed"),
        ("languages: " + "[" * 20_000, "nested too deeply"),
        ("extra: &x {a: *x}", "nested too deeply"),
        (b'{"steps": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"steps": 1, "steps": 2}', "steps is given twice"),
        (b'{"steps": ' + b"9" * 5000 + b"}", "is malformed: Exceeds the limit"),
        (b'{"language": "\xff"}', "not valid UTF-8 at byte 14"),
        ('{"steps": 1}'.encode("utf-16"), "not valid UTF-8 at byte 0; save it as plain UTF-8 text"),
    ],
)
def test_bad_recipe_is_one_line_that_names_the_file(tmp_path, capsys, text, complaint):
    """Text is YAML, bytes are JSON."""
    path = tmp_path / ("recipe.yaml" if isinstance(text, str) else "recipe.json")
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    message = refusal(capsys, ["--config", str(path)])
    assert complaint in message and str(path) in message
    if text == "pooling: max":  # a wrong flag is not blamed on the recipe
        path.write_text("pooling: mean")
        assert str(path) not in refusal(capsys, ["--config", str(path), "--pooling", "max"])


@pytest.mark.parametrize(
    "argv, complaint",
    [
        (["--step", "3"], "unknown flag --step; did you mean --steps?"),  # no abbreviations
        (["--qqqq=3"], "unknown flag --qqqq; --help lists the flags."),
        (["--language", "de", "fr"], "unexpected argument 'fr'"),
        (["--config"], "--config needs a file"),
        (["--config", "a.yaml", "--config=b.yaml"], "give one recipe, not 2 (a.yaml, b.yaml)"),
        (["a.yaml", "--config", "b.yaml"], "give one recipe, not 2 (a.yaml, b.yaml)"),
        (["--config", "missing.yaml"], "missing.yaml cannot be read: No such file or directory"),
        (["--name", "bad"], "name is bad; expected a good one."),
    ],
)
def test_usage_errors_end_with_code_2_and_one_line(capsys, argv, complaint):
    assert complaint in refusal(capsys, argv)


TOKEN = "hf_" + "aB1" * 12


@pytest.mark.parametrize(
    "argv",
    [
        ["--language", TOKEN],
        [f"--language={TOKEN}"],
        ["--steps", TOKEN],
        ["--languages", "https://hub.org/x?token=s3cret"],
        [TOKEN],
        [f"--{TOKEN}"],
        ["--config", f"{TOKEN}.yaml"],
        ["--config", "RECIPE"],
        ["--steps", "x", "--pooling", "hf_Short123"],
    ],
)
def test_a_token_is_refused_where_it_does_not_belong_and_not_repeated(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"report_to: [{TOKEN}]")
    line = refusal(capsys, [str(recipe) if part == "RECIPE" else part for part in argv])
    assert not [secret for secret in (TOKEN[3:], "s3cret", "Short123") if secret in line]


def test_a_token_is_taken_by_its_own_flag_and_folders_may_be_called_much() -> None:
    parsed, _, secret = parse_args_with_config(
        [Settings, Other, Secret], ["--language", "hf_checkpoints/x", "--hub_token", TOKEN]
    )
    assert (parsed.language, secret.hub_token) == ("hf_checkpoints/x", TOKEN)

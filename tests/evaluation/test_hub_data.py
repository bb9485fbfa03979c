"""Datasets of the Hub: one commit for all their parts, and what the Hub does not give."""

from types import SimpleNamespace

import pytest

from modeling_infoxlm.evaluation.hub_data import HubData
from modeling_infoxlm.runs.errors import UsageError


class Api:
    """The Hub, which knows one dataset."""

    asked: list[str | None] = []

    def __init__(self, token: str | None) -> None:
        assert token == "secret"

    def dataset_info(self, name: str, revision: str | None) -> SimpleNamespace:
        if name != "facebook/xnli":
            raise OSError("404")
        self.asked.append(revision)
        return SimpleNamespace(sha=f"commit of {revision}")


def test_the_commit_is_looked_up_once_and_what_it_says_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dataset may change in between."""
    loaded = []
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: loaded.append((args, options)))
    Api.asked.clear()
    hub = HubData("secret", "cache")
    hub.rows("facebook/xnli", "fr", "validation", "v1")
    hub.rows("facebook/xnli", "de", "test", "v1")
    hub.rows("facebook/xnli", None, "test", "0" * 40)  # needs no network
    assert Api.asked == ["v1"]
    options = {"revision": "commit of v1", "token": "secret", "cache_dir": "cache"}
    assert loaded[:2] == [
        (("facebook/xnli", "fr"), {"split": "validation", **options}),
        (("facebook/xnli", "de"), {"split": "test", **options}),
    ]
    assert loaded[2][1]["revision"] == "0" * 40
    with pytest.raises(UsageError, match="not reachable on the Hub"):
        hub.commit("facebook/nothing", None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no network\nat all"), r"facebook/xnli, fr of the Hub cannot be loaded: no network$"),
        (RuntimeError("Dataset scripts are no longer supported"), "the revision refs/convert/parquet"),
    ],
)
def test_what_the_hub_does_not_give_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def load_dataset(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UsageError, match=message):
        HubData(None, None).rows("facebook/xnli", "fr", "test", "0" * 40)

"""Data sets of the Hub that benchmarks are read from, each of one commit."""

from dataclasses import dataclass, field
from typing import Any

from modeling_infoxlm.data.readers import hub_revision
from modeling_infoxlm.data.sources import HUB_PREFIX
from modeling_infoxlm.runs.errors import UsageError


@dataclass(frozen=True)
class HubData:
    """How the Hub is asked."""

    token: str | None  # None is the stored one
    cache_dir: str | None  # None is the `datasets` library's own
    # of each dataset and revision that was asked for: all configurations are of the same one
    commits: dict[tuple[str, str | None], str] = field(default_factory=dict)

    def commit(self, name: str, revision: str | None) -> str:
        """Commit of a branch or tag of a dataset; None is that which it stands at now."""
        if (name, revision) not in self.commits:
            commit = hub_revision(f"{HUB_PREFIX}{name}", revision=revision, token=self.token)
            self.commits[name, revision] = commit
        return self.commits[name, revision]

    def rows(self, name: str, config: str | None, split: str, revision: str | None) -> Any:
        """Rows of a part of a dataset; a `UsageError` if it cannot be loaded."""
        import datasets

        options = {"revision": self.commit(name, revision), "token": self.token, "cache_dir": self.cache_dir}
        try:
            return datasets.load_dataset(name, config, split=split, **options)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a dataset that is a script
            advice = "; take the revision refs/convert/parquet" if "script" in str(error) else ""
            reason = str(error).partition("\n")[0]
            place = f"{name}, {config}" if config else name
            raise UsageError(f"{place} of the Hub cannot be loaded: {reason}{advice}") from error

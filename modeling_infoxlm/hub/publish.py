"""Publishing: a release goes to the Hub in one commit, or nothing of it does.

Files are uploaded first; they belong to nothing until the commit, so an interrupted push leaves the
repository as it was, and the same push again sends only what is missing.
"""

import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from modeling_infoxlm.hub.card import CARD_NAME, is_ours
from modeling_infoxlm.hub.export import RELEASE_FILE, Format
from modeling_infoxlm.hub.release import (
    build_release,
    copy_tree,
    list_release,
    read_release_files,
)
from modeling_infoxlm.hub.retries import RetriedApi
from modeling_infoxlm.runs.errors import UsageError

logger = logging.getLogger(__name__)

PUSHING_FOLDER = ".pushing"
AUTOMATIC_TAG, NO_TAG = "auto", "none"
MAIN = "main"
_WEIGHTS = re.compile(r"(model|pytorch_model)[^/]*\.(safetensors|bin)(\.index\.json)?")


@dataclass(frozen=True)
class PushRecord:
    """What a push did: address of the commit or pull request, the commit, the new tag, if there was news."""

    url: str
    oid: str
    tag: str | None
    changed: bool


def push_release(
    folder: Path,
    repo_id: str,
    *,
    api: RetriedApi,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str = AUTOMATIC_TAG,
    message: str = "Release",
) -> PushRecord:
    """Publish a release folder: repository, one commit, then a tag.

    Files of an earlier release that this one does not have are deleted in the same commit: transformers would
    take a left-over `model.safetensors` for the weights of a sharded model. A card on the Hub that somebody
    made their own is kept.

    Args:
        folder: A release, as `build_release` writes it; not changed.
        repo_id: `ORG/NAME`; made if missing.
        api: The Hub and how often it is tried.
        private: Make it private. An existing public repository is an error then.
        revision: Branch, made if missing; None for main.
        create_pr: Open a pull request against main.
        tag: Name; `"auto"` for the next of v1, v2, ... where the commit is on main; `"none"`.
        message: Of the commit.

    Raises:
        UsageError: If the name, the tag or the visibility cannot be had.
        HubError: If the Hub refuses or cannot be reached, after retries; nothing is committed then, unless it
            is the tag that could not be made.
    """
    check_repo_id(repo_id)
    is_branch = revision not in (None, MAIN)
    if create_pr and is_branch:
        raise UsageError("a pull request goes to main; give either --create_pr or --revision.")
    files = list_release(folder)
    repo_id = make_repository(api, repo_id, private=private)
    refs = api.call("list the tags", lambda hub: hub.list_repo_refs(repo_id))
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if is_branch:
        branch = str(revision)
        api.call("make the branch", lambda hub: hub.create_branch(repo_id, branch=branch, exist_ok=True))
    head = api.call("look at the repository", lambda hub: hub.repo_info(repo_id, revision=revision)).sha
    name = _tag_name(repo_id, tag, tags, head, on_main=not is_branch and not create_pr)
    commit = _Branch(api, repo_id, revision).commit(files, message=message, create_pr=create_pr)
    if commit.oid == tags.get(str(name)) or (tag == AUTOMATIC_TAG and commit.oid in tags.values()):
        name = None  # nothing is new, and the last push came to its end
    elif name in tags:
        raise UsageError(
            f"committed, but the tag {name} is of an earlier commit; push again with another --tag."
        )
    if name is not None:
        new, oid = name, commit.oid
        api.call("make the tag", lambda hub: hub.create_tag(repo_id, tag=new, revision=oid, exist_ok=True))
    changed = create_pr or commit.oid != head
    return PushRecord(commit.pr_url or commit.commit_url, commit.oid, name, changed)


def make_repository(api: RetriedApi, repo_id: str, *, private: bool) -> str:
    """Make a repository if it is missing, refuse a public one for a private model; returns its full name."""
    made = api.call(
        "make the repository", lambda hub: hub.create_repo(repo_id, private=private or None, exist_ok=True)
    )
    name = str(made.repo_id)
    if private and not api.call("look at the repository", lambda hub: hub.repo_info(name)).private:
        raise UsageError(
            f"{name} exists and is public; push without --private, or make it private on the Hub first."
        )
    return name


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no name of a repository before anything is built."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no name of a repository, expected ORG/NAME: {error}") from error


def _tag_name(
    repo_id: str, tag: str, taken: dict[str, str], head: str | None, *, on_main: bool
) -> str | None:
    if tag == NO_TAG or (tag == AUTOMATIC_TAG and not on_main):
        return None
    if tag == AUTOMATIC_TAG:
        return next(name for name in (f"v{i}" for i in range(1, len(taken) + 2)) if name not in taken)
    if tag in taken and taken[tag] != head:  # where nothing is new it is as it should be
        raise UsageError(f"{repo_id} has a tag {tag} already; give another --tag.")
    return tag


@dataclass(frozen=True)
class _Branch:
    """A branch of a repository, main for None: what is there, and what a release makes of it."""

    api: RetriedApi
    repo_id: str
    revision: str | None

    def commit(self, files: Mapping[str, Path], *, message: str, create_pr: bool) -> CommitInfo:
        """Upload, then commit; of a pull request only the upload is repeated, else it might be opened twice.

        Each further try makes its operations anew, since they remember what the Hub said of them, and each
        looks at what is there by then: the answer to an earlier one may have been lost.
        """
        sent = dict(files)
        if CARD_NAME in sent and is_ours(sent[CARD_NAME].read_bytes()) and self._has_own_card():
            del sent[CARD_NAME]
        uploaded = _additions(sent)
        tries = iter([uploaded])
        to: dict[str, Any] = {"repo_id": self.repo_id, "revision": self.revision, "create_pr": create_pr}

        def commit(hub: HfApi) -> CommitInfo:
            additions = next(tries, None) or _additions(sent)
            deletions = [CommitOperationDelete(name) for name in self._stale_files(set(files))]
            return hub.create_commit(operations=[*additions, *deletions], commit_message=message, **to)

        self.api.call(
            "upload the files",
            lambda hub: hub.preupload_lfs_files(additions=uploaded, free_memory=False, **to),
        )
        return self.api.call("commit", commit, attempts=1 if create_pr else None)

    def _has_own_card(self) -> bool:
        """Whether somebody has made the card on the Hub their own."""
        return CARD_NAME in self._names() and not is_ours(self._read(CARD_NAME))

    def _stale_files(self, new: set[str]) -> list[str]:
        """Files that only the last release brought, and other weights of the same kind."""
        present, stale = self._names(), set()
        if RELEASE_FILE in present:
            stale = read_release_files(self._read(RELEASE_FILE))
        if any(_WEIGHTS.fullmatch(name) for name in new):
            stale |= {name for name in present if _WEIGHTS.fullmatch(name)}
        return sorted((stale & present) - new)

    def _names(self) -> set[str]:
        options = {"revision": self.revision}
        return set(self.api.call("list the files", lambda hub: hub.list_repo_files(self.repo_id, **options)))

    def _read(self, name: str) -> bytes:
        """Content of a small file."""
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"revision": self.revision, "local_dir": folder}
            path = self.api.call(
                "read the last release", lambda hub: hub.hf_hub_download(self.repo_id, name, **options)
            )
            return Path(path).read_bytes()


def _additions(files: Mapping[str, Path]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name, str(path)) for name, path in files.items()]


@dataclass
class TrainingPublisher:
    """Pushes what a training run saves; releases are built in a hidden folder in the run's."""

    repo_id: str
    output_dir: Path
    format: Format
    license: str | None = None  # of the model, for its card
    private: bool = False  # the repository must be
    token: str | None = field(default=None, repr=False)  # of the Hub; None for the stored login
    revision: str | None = None  # branch; None for main

    def __post_init__(self) -> None:
        """Name the hidden folder, and open the Hub."""
        self.staging = self.output_dir / PUSHING_FOLDER
        self.api = RetriedApi(HfApi(token=self.token))

    def prepare(self) -> None:
        """Look whether pushes can go there, and remove what a killed one has left here."""
        make_repository(self.api, self.repo_id, private=self.private)
        shutil.rmtree(self.staging, ignore_errors=True)

    def push_checkpoint(
        self, folder: Path, *, message: str, checkpoint_in_repo: str | None = None, tag: bool = False
    ) -> "Future[str]":
        """Build a release of a model folder now, push it in the background.

        Args:
            folder: Model folder: a checkpoint, or the folder of the run.
            message: Of the commit.
            checkpoint_in_repo: Also put the folder itself, with all that resumption needs, under this name.
            tag: Tag the commit.

        Returns:
            Address of the commit, when it is there. A failure is logged, not raised into training.
        """
        self.staging.mkdir(exist_ok=True)
        release = Path(tempfile.mkdtemp(dir=self.staging)) / "release"
        try:
            build_release(folder, release, repo_id=self.repo_id, license=self.license, format=self.format)
            if checkpoint_in_repo is not None:  # checkpoints are rotated away while they are uploaded
                copy_tree(folder, release / checkpoint_in_repo)
        except Exception as error:  # whatever it is, the training must not end by it
            shutil.rmtree(release.parent, ignore_errors=True)
            job: Future[str] = Future()
            job.set_exception(error)
        else:
            job = self.api.hub.run_as_future(self._push, release, message, AUTOMATIC_TAG if tag else NO_TAG)
        job.add_done_callback(_log_failure)
        return job

    def _push(self, release: Path, message: str, tag: str) -> str:
        try:
            options: dict[str, Any] = {"revision": self.revision, "message": message, "tag": tag}
            return push_release(release, self.repo_id, api=self.api, **options).url
        finally:
            shutil.rmtree(release.parent, ignore_errors=True)


def _log_failure(job: "Future[str]") -> None:
    if job.exception() is not None:
        logger.warning("a push in the background failed, the training goes on: %s", job.exception())

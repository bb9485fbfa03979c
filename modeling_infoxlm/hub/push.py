"""`infoxlm push`: a folder becomes a release, and the release a repository on the Hub.

infoxlm push out ORG/NAME
infoxlm push out ORG/NAME --format sentence-transformers --layer 8 --results results/ --license apache-2.0
infoxlm push release ORG/NAME --create_pr true
infoxlm push out ORG/NAME --dry_run
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from rich.console import Console
from rich.filesize import decimal
from rich.markdown import Markdown
from rich.table import Table

from modeling_infoxlm.hub.card import CARD_NAME
from modeling_infoxlm.hub.export import FormatOptions, read_record
from modeling_infoxlm.hub.publish import AUTOMATIC_TAG, check_repo_id, make_repository, push_release
from modeling_infoxlm.hub.release import build_release, complete_release, list_release
from modeling_infoxlm.hub.retries import RetriedApi
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.flags import flag, name_leading
from modeling_infoxlm.runs.process import leave_process_group


@dataclass
class EvidenceArguments:
    """What a card says besides what the folder of the model knows."""

    results: list[str] = flag(
        [], "Result files, or folders of them, of this model; their numbers enter the card."
    )
    license: str | None = flag(None, "Licence of the model, such as apache-2.0.")


@dataclass
class CardArguments(EvidenceArguments):
    """A release and what its card is to say."""

    _argument_group_name = "card"

    model_name_or_path: str = flag("", "Release of `infoxlm export`.")
    repo_id: str | None = flag(None, "Name that the card's code loads. Unset: the folder as it was given.")


@dataclass
class PushArguments(FormatOptions, EvidenceArguments):
    """What is published, and where."""

    _argument_group_name = "push"

    model_name_or_path: str = flag("", "Folder of a run, a checkpoint or a release of `infoxlm export`.")
    repo_id: str = flag("", "Repository on the Hub, ORG/NAME; made if missing.")
    private: bool = flag(False, "Only members of ORG see the repository.")
    revision: str | None = flag(None, "Branch; made if missing. Default: main.")
    create_pr: bool = flag(False, "Open a pull request instead.")
    tag: str = flag(
        AUTOMATIC_TAG, "Tag of the commit; auto is the next of v1, v2, ... on main; none for no tag."
    )
    message: str | None = flag(None, "Message of the commit.")
    dry_run: bool = flag(False, "Only build the release and list its files and their sizes.")
    # repr=False: a printed or logged instance must not show the secret.
    token: str | None = flag(None, "Token of the Hub; default: the login of `hf auth login`.", repr=False)


def push_command(argv: list[str]) -> None:
    """Publish a model: `infoxlm push FOLDER ORG/NAME`; these two may be flags as well."""
    argv = name_leading(argv, ("--model_name_or_path", "--repo_id"))
    (arguments,) = parse_args_with_config((PushArguments,), argv, program="infoxlm push", about=__doc__)
    if not arguments.model_name_or_path or not arguments.repo_id:
        raise UsageError("infoxlm push needs a folder and a repository: infoxlm push out ORG/NAME.")
    source = Path(arguments.model_name_or_path)
    if not source.is_dir():
        raise UsageError(f"there is no folder {source}; infoxlm push needs the folder of a run or a release.")
    _push(arguments)


def card_command(argv: list[str]) -> None:
    """Write the card of a release into its folder, and show it: `infoxlm card FOLDER --results RESULTS`."""
    argv, about = name_leading(argv, ("--model_name_or_path",)), card_command.__doc__
    (arguments,) = parse_args_with_config((CardArguments,), argv, program="infoxlm card", about=about)
    folder = Path(arguments.model_name_or_path)
    if not arguments.model_name_or_path or read_record(folder) is None:
        raise UsageError(
            f"infoxlm card needs a release, found {arguments.model_name_or_path!r}; "
            "infoxlm export makes one: infoxlm export out."
        )
    complete_release(
        folder,
        folder,
        repo_id=arguments.repo_id or arguments.model_name_or_path,
        results=[Path(path) for path in arguments.results],
        license=arguments.license,
    )
    Console().print(Markdown(ModelCard.load(folder / CARD_NAME).text))


def push_run(args: Any) -> None:
    """Publish the folder of a finished run, as `--push_to_hub true` asks for; on the first process only.

    Args:
        args: Training arguments, with `ReleaseArguments`.
    """
    if not args.push_to_hub:
        return
    leave_process_group()  # nobody waits for the upload: others would give up after --ddp_timeout
    if not args.process_index:
        push_model(
            Path(args.output_dir),
            args.hub_model_id,
            format=args.hub_format,
            license=args.hub_license,
            private=bool(args.hub_private_repo),
            revision=args.hub_revision,
            token=args.hub_token,
        )


def push_model(folder: Path, repo_id: str | None, **options: Any) -> None:
    """Publish a folder and print where.

    Args:
        folder: Of a run, a checkpoint or a release.
        repo_id: Repository; None is the folder's name, in the namespace of who is logged in.
        options: Fields of `PushArguments`.
    """
    name = repo_id or folder.resolve().name
    _push(PushArguments(model_name_or_path=str(folder), repo_id=name, **options))


def _push(arguments: PushArguments) -> None:
    """Build a release in a temporary folder, list its files, publish it and print where."""
    source, repo_id = Path(arguments.model_name_or_path), arguments.repo_id
    check_repo_id(repo_id)
    api = RetriedApi(HfApi(token=arguments.token))
    if not arguments.dry_run:  # the card's code needs the full name
        repo_id = make_repository(api, repo_id, private=arguments.private)
    with tempfile.TemporaryDirectory(prefix="infoxlm-push-") as staging:
        folder = Path(staging) / "release"
        build_release(
            source,
            folder,
            repo_id=repo_id,
            results=[Path(path) for path in arguments.results],
            license=arguments.license,
            **arguments.format_options(),
        )
        _print_files(list_release(folder))
        if arguments.dry_run:
            print(f"dry run: nothing was sent to {repo_id}.")
            return
        record = push_release(
            folder,
            repo_id,
            api=api,
            private=arguments.private,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            tag=arguments.tag,
            message=arguments.message or f"Release of {source.resolve().name}",
        )
    done = f", tag {record.tag}" if record.tag else ""
    print(record.url + (done if record.changed else ": nothing has changed, no commit was made."))


def _print_files(files: Mapping[str, Path]) -> None:
    table = Table("file", box=None, pad_edge=False)
    table.add_column("size", justify="right")
    sizes = {name: path.stat().st_size for name, path in files.items()}
    for name, size in sizes.items():
        table.add_row(name, decimal(size))
    table.add_row(f"{len(files)} files", decimal(sum(sizes.values())))
    Console(highlight=False).print(table)

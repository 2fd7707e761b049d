"""A release to a hub, by Hugging Face's own client: all of it, and a branch for each revision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystalmix.train.weights.release import REVISIONS, Released


@dataclass(frozen=True)
class Upload:
    """A folder that is sent to a branch."""

    branch: str
    folder: Path
    files: int
    bytes: int
    message: str


def uploads(release: Released) -> list[Upload]:
    """Return what is sent: the release to `main`, the weights of each revision to its branch."""
    sent = [_upload("main", release.path, f"Release {release.path.resolve().name}")]
    for revision in release.revisions:
        folder = release.path / REVISIONS / revision.name
        message = f"{revision.phase} step {revision.step}, {revision.tokens} tokens"
        sent.append(_upload(revision.name, folder, message))
    return sent


def push(release: Released, repo: str, hub: Any = None) -> list[Upload]:  # noqa: ANN401
    """Send a release to a private repository, made where it is not there; return what was sent.

    hub: a `huggingface_hub.HfApi` other than the default.
    """
    if hub is None:
        from huggingface_hub import HfApi

        hub = HfApi()
    sent = uploads(release)
    hub.create_repo(repo, private=True, exist_ok=True)
    for upload in sent:
        if upload.branch != "main":
            hub.create_branch(repo, branch=upload.branch, exist_ok=True)
        hub.upload_folder(
            repo_id=repo,
            folder_path=upload.folder,
            revision=upload.branch,
            commit_message=upload.message,
        )
    return sent


def _upload(branch: str, folder: Path, message: str) -> Upload:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Upload(branch, folder, len(sizes), sum(sizes), message)

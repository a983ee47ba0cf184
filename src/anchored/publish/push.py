"""Implements `anchored push`: uploads a model folder to the hub after checking its files."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchored.config import Config
from anchored.errors import ConfigError, DataError, EndpointError
from anchored.models import RECORD
from anchored.publish import CARD
from anchored.publish.check import Upload, problems, uploads

TOKEN = "HF_TOKEN"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HEAD = 24


class PushConfig(Config):
    """Configuration of `anchored push`.

    Args:
        model: folder of a model that anchored trained.
        repo: `owner/name`; created if it does not exist.
        private: True to create a private repository.
    """

    model: Path
    repo: str
    private: bool = False


@dataclass(frozen=True)
class Plan:
    """The files of a push before they are sent."""

    config: PushConfig
    files: Sequence[Upload]

    def as_json(self) -> dict[str, Any]:
        """Return the form for other programs."""
        return {
            "repo": self.config.repo,
            "private": self.config.private,
            "files": {file.name: file.size for file in self.files},
            "bytes": sum(file.size for file in self.files),
            "scrubbed": [file.name for file in self.files if file.text is not None],
        }

    def __str__(self) -> str:
        sizes = [f"{file.size:>15,}  {file.name}" for file in self.files]
        card = next((file.text for file in self.files if file.name == CARD), None)
        head = (card or f"no {CARD}; write it with `anchored card`").split("\n")[:_HEAD]
        total = sum(file.size for file in self.files)
        return "\n".join([f"to {self.config.repo}: {total:,} bytes", *sizes, "", *head])


def plan(config: PushConfig) -> Plan:
    """Return what would be sent, without sending anything or using the network.

    Raises:
        ConfigError: `repo` is not a repository name.
        DataError: the folder is not a model that anchored trained, or must not be sent: its weights
            are not safetensors, or it has pickle, code or what looks like a secret.
    """
    if not _REPO.fullmatch(config.repo):
        raise ConfigError(f"--repo {config.repo!r}: write owner/name")
    if not (config.model / RECORD).is_file():
        raise DataError(f"{config.model}: no {RECORD}; not a model trained by anchored")
    files = uploads(config.model, config.repo)
    found = list(problems(files))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise DataError(f"{config.model / found[0]}{more}")
    return Plan(config, files)


def push(planned: Plan) -> str:
    """Send the listed files in one commit and return its URL.

    The token is read only from the environment variable HF_TOKEN.

    Raises:
        ConfigError: there is no token.
        EndpointError: the hub refuses the files or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] (httpx's or httpx2's, by its version)
        OfflineModeIsEnabled,
    )

    token = os.environ.get(TOKEN)
    if not token:
        raise ConfigError(f"{TOKEN}: not set; set it to a token with write access to the hub")
    repo = planned.config.repo
    hub = HfApi(token=token)
    with tempfile.TemporaryDirectory() as name:
        _stage(planned.files, Path(name))
        try:
            hub.create_repo(repo, private=planned.config.private, exist_ok=True)
            commit = hub.upload_folder(
                repo_id=repo, folder_path=name, commit_message="Upload with anchored"
            )
        except (HTTPError, OfflineModeIsEnabled) as error:
            reason = " ".join(str(error).replace(token, "***").split())[:300]
            raise EndpointError(f"{repo}: not pushed: {reason}") from None
    return commit.commit_url


def _stage(files: Sequence[Upload], folder: Path) -> None:
    """Make a folder of exactly these files: links, or new files if the content was scrubbed."""
    for file in files:
        if file.text is None:
            (folder / file.name).symlink_to(file.source.resolve())
        else:
            (folder / file.name).write_text(file.text, encoding="utf-8")

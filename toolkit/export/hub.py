"""Give a model away on the Hugging Face hub: only when asked to by name, and never offline."""

import os
import re
from pathlib import Path

from toolkit.errors import UserError


def check_repo(repo: str) -> None:
    """Raises UserError for what is no owner/name, or when the network is forbidden."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"--push {repo}: not a hub id", "give owner/name, such as --push ann/night-stories")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise UserError(f"--push {repo} needs the network, which --offline forbids", "leave one of the two out")


def push(files: list[Path], repo: str, public: bool = False) -> str:
    """Upload these files, and no other that lies beside them, as the hub's model `repo`; returns its address.

    A repository that is not there is made, private unless `public`; one that is there stays as visible as it is.

    The token is huggingface_hub's own ($HF_TOKEN, or what `hf auth login` kept).

    Raises UserError: not allowed there, no network, or no such owner. What the hub took before stays there.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repo(repo)
    api = HfApi(library_name="fablesmith")
    try:
        address = api.create_repo(repo, repo_type="model", private=not public, exist_ok=True)
        added = [CommitOperationAdd(path_in_repo=f.name, path_or_fileobj=f) for f in files]
        api.create_commit(repo, added, commit_message="A model made by Fablesmith")
    except Exception as error:  # its transport's errors too, whose package has another name from version to version
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the hub did not take {repo}: {first}", "log in with `hf auth login`, as its owner") from None
    return str(address)

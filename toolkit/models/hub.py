"""Whether a hub's model can be had: asked in seconds, before anything else waits for it."""

import os
from pathlib import Path

from toolkit.errors import UserError
from toolkit.models.resolve import Model

PATIENCE = 5  # seconds for the hub's answer; its own client tries for most of a minute


def is_cached(id: str) -> bool:
    """Whether weights of a hub's model lie in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(id, "config.json")
    return isinstance(found, str) and any(Path(found).parent.glob("*.safetensors"))


def require(model: Model) -> None:
    """Raise UserError where a model's weights are neither on this machine nor to be had: offline, missing, gated, no network."""
    if not isinstance(model.weights, Path) and not is_cached(model.weights):
        ask_hub(model.weights)


def ask_hub(id: str) -> None:
    """Raise UserError where the hub has no model of this id for this user, or cannot be asked."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise UserError(f"{id} is not on this machine", "without --offline it would be fetched")
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(id, "config.json"), timeout=PATIENCE)
    except GatedRepoError:
        raise UserError(
            f"{id} is gated: its makers want to know who takes it",
            f"accept the terms at huggingface.co/{id}, then `hf auth login`",
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the hub has no model {id}, or it is private", "check the id; `hf auth login` for a private one"
        ) from None
    except EntryNotFoundError:
        raise UserError(
            f"{id} has no config.json", "name a repository of safetensors; a GGUF goes under model.gguf"
        ) from None
    except Exception as error:  # the hub's client has changed its network library twice, and its errors with it
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{id} is not on this machine, and the hub cannot be reached: {first}",
            "check the id and the network, or name a local folder",
        ) from None

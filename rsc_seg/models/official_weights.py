"""The official release of a backbone: from a local cache, or from the hub when it answers within seconds."""

import logging
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import timm
import torch

from rsc_seg.errors import UserError
from rsc_seg.models.registry import BackboneRow

log = logging.getLogger(__name__)

HUB_FILE = "model.safetensors"
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Release:
    """Where the official weights of a backbone are public."""

    url: str  # the release's own file
    hub: str  # timm's repository on the hub, whose file has timm's names


def official_release(row: BackboneRow) -> Release:
    """Addresses that timm keeps for `row`; UserError for a backbone without official weights."""
    known = timm.get_pretrained_cfg(f"{row.timm_id}.{row.timm_tag}") if row.official_file else None
    if known is None:
        raise UserError(f"backbone '{row.name}' has no official weights; use --weights none or a file.")
    return Release(url=str(known.url), hub=str(known.hf_hub_id))


def torch_hub_file(row: BackboneRow) -> Path:
    """Where torch.hub keeps the release's own file once something has loaded it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / row.official_file


def _unreachable(address: str) -> str:
    """Why nothing answers at `address`, or the empty string; the hub's client itself would retry for half a minute."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""  # something answered
    except urllib.error.URLError as e:
        # A certificate that only this client refuses is no proof: the hub's client may know another one.
        return "" if isinstance(e.reason, ssl.SSLError) else str(e.reason)
    except OSError as e:
        return str(e)


def _from_hub(repository: str) -> tuple[Path | None, str]:
    """The hub's file, or the reason why it cannot be had."""
    try:
        return Path(huggingface_hub.hf_hub_download(repository, HUB_FILE, local_files_only=True)), ""
    except (OSError, ValueError):
        log.debug("%s is not in the hub's cache", repository)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    reason = _unreachable(huggingface_hub.constants.ENDPOINT)
    if reason:
        return None, f"{huggingface_hub.constants.ENDPOINT} is unreachable: {reason}"
    try:
        return Path(huggingface_hub.hf_hub_download(repository, HUB_FILE, etag_timeout=CONNECT_SECONDS)), ""
    except Exception as e:  # the errors of the hub's client and of its transport share no base class
        return None, (str(e).strip() or type(e).__name__).splitlines()[0]


def find_official(row: BackboneRow) -> Path:
    """A local file of `row`'s official weights: torch.hub's copy, the hub's cached copy, or a download from the hub.

    Raises UserError within seconds when there is none and the hub does not answer; it says which file to put where.
    """
    release = official_release(row)
    local = torch_hub_file(row)
    if local.is_file():
        log.info("official weights of %s: %s", row.name, local)
        return local
    found, reason = _from_hub(release.hub)
    if found is None:
        raise UserError(
            f"official weights of {row.name} are not on this machine and cannot be fetched ({reason}): download "
            f"{release.url} elsewhere and pass --weights PATH/{row.official_file}, or put it into {local.parent}."
        )
    log.info("official weights of %s: %s", row.name, found)
    return found

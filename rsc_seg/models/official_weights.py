"""The official release of a backbone: from a local cache, or from the hub when it answers within seconds."""

import logging
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import timm
import torch

from rsc_seg.errors import UserError
from rsc_seg.models.registry import REGISTRY, BackboneRow

log = logging.getLogger(__name__)

HUB_FILE = "model.safetensors"
CONNECT_SECONDS = 5.0


def has_own_name(row: BackboneRow) -> bool:
    """Whether no other release gives its file the name of `row`'s."""
    others = (other.official_file for other in REGISTRY.values() if other.name != row.name)
    return bool(row.official_file) and row.official_file not in others


def release_row(name: str) -> BackboneRow | None:
    """The row whose official release has this file name; None for other names and those that several releases share."""
    return next((row for row in REGISTRY.values() if row.official_file == name and has_own_name(row)), None)


@dataclass(frozen=True)
class Release:
    """Where the official weights of a backbone are public."""

    url: str  # the release's own file; empty for CLIPs, whose releases are not all at one address
    hub: str  # timm's repository on the hub, whose file has timm's names


def official_release(row: BackboneRow) -> Release:
    """Addresses that timm keeps for `row`; UserError for a backbone without official weights."""
    known = timm.get_pretrained_cfg(row.release) if row.official_file else None
    if known is None:
        raise UserError(f"backbone '{row.name}' has no official weights; use --weights none or a file.")
    return Release(url=str(known.url or ""), hub=str(known.hf_hub_id))


def torch_hub_file(row: BackboneRow) -> Path | None:
    """Where torch.hub keeps the release's own file once something has loaded it.

    None where several releases give their files one name: what lies there may be another one.
    """
    if not has_own_name(row):
        return None
    return Path(torch.hub.get_dir()) / "checkpoints" / row.official_file


def unreachable(address: str) -> str:
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


def from_hub(repository: str, names: Sequence[str], download: Callable[[], str]) -> tuple[Path | None, str]:
    """The first of `names` in the hub's cached copy of `repository`, else what `download` fetches.

    Otherwise None and the reason why the file cannot be had, within seconds.
    """
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, local_files_only=True)), ""
        except (OSError, ValueError):
            log.debug("%s of %s is not in the hub's cache", name, repository)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    reason = unreachable(huggingface_hub.constants.ENDPOINT)
    if reason:
        return None, f"{huggingface_hub.constants.ENDPOINT} is unreachable: {reason}"
    try:
        return Path(download()), ""
    except Exception as e:  # the errors of the hub's client and of its transport share no base class
        return None, (str(e).strip() or type(e).__name__).splitlines()[0]


def _download(repository: str) -> str:
    return str(huggingface_hub.hf_hub_download(repository, HUB_FILE, etag_timeout=CONNECT_SECONDS))


def _how_to_fetch(row: BackboneRow, release: Release, local: Path | None) -> str:
    """What to download elsewhere, and where to put it."""
    place = "" if local is None else f", or put it into {local.parent}"
    if release.url:
        return f"download {release.url} elsewhere and pass --weights PATH/{row.official_file}{place}"
    page = f"{huggingface_hub.constants.ENDPOINT}/{release.hub}"
    own = f"the release's own {row.official_file}"
    return (
        f"download {HUB_FILE} of {page} elsewhere and pass --weights PATH/{HUB_FILE}; or take {own}: pass "
        f"--weights PATH/{row.official_file}{place}"
    )


def find_official(row: BackboneRow) -> Path:
    """A local file of `row`'s official weights: torch.hub's copy, the hub's cached copy, or a download from the hub.

    Raises UserError within seconds when there is none and the hub does not answer; it says which file to put where.
    """
    release = official_release(row)
    local = torch_hub_file(row)
    if local is not None and local.is_file():
        log.info("official weights of %s: %s", row.name, local)
        return local
    found, reason = from_hub(release.hub, (HUB_FILE,), lambda: _download(release.hub))
    if found is None:
        raise UserError(
            f"official weights of {row.name} are not on this machine and cannot be fetched ({reason}): "
            f"{_how_to_fetch(row, release, local)}."
        )
    log.info("official weights of %s: %s", row.name, found)
    return found

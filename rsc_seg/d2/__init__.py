"""The only folder that imports detectron2: its catalogues, loaders, hooks and launch around Cat-Seg."""

from importlib.util import find_spec

from rsc_seg.errors import UserError


def require_detectron2() -> None:
    """UserError that says how to install it where detectron2 is not there; call before importing from this folder."""
    if find_spec("detectron2") is None:
        raise UserError(
            "detectron2 is not installed: pip install 'rsc-seg[d2]', then "
            "python third_party/detectron2/install_detectron2.py in a checkout of this project."
        )

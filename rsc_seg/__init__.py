"""Refining the spatial awareness of CLIP and DINOv2 encoders, and measuring it."""

__version__ = "0.1.0"

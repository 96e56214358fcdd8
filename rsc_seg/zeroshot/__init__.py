"""Zero-shot measures: what a CLIP's dense features say by class names alone."""

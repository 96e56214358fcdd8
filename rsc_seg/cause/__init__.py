"""CAUSE: unsupervised segmentation of frozen features, and what it needs to be measured."""

"""Cat-Seg as a plain module: images and class names in, per-class maps out."""

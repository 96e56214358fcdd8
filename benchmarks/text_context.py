#!/usr/bin/env python3
"""Times a text tower on the 150 classes of ADE20K with its context trimmed and in full, in one process, in turns.

    benchmarks/text_context.py [--backbone clip_vitb16] [--prompts single] [--repeats 2] [--batch 150] [--threads N]

Weights are random and float32, which changes no cost. Both sides read the same tokens; their unit vectors are compared
first and must agree. Prints both medians, the median of the pairwise ratios (trimmed over full) and the largest
difference.
"""

import argparse
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.data import vocab
from rsc_seg.data.prompts import class_sentences, open_prompts
from rsc_seg.models.text import TextTower
from rsc_seg.models.text_weights import build_text_tower

TOLERANCE = 1e-6


def encode(tower: TextTower, tokens: Tensor, batch: int, trim: bool) -> tuple[Tensor, float]:
    """Embeddings and seconds."""
    start = time.perf_counter()
    with torch.no_grad():
        found = torch.cat([tower.encode(part, trim=trim) for part in tokens.split(batch)])
    return found, time.perf_counter() - start


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="clip_vitb16")
    parser.add_argument("--prompts", default="single")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch", type=int, default=150)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tower = build_text_tower(args.backbone, "none")
    cells = class_sentences(vocab.load("ade20k_150").names, open_prompts(args.prompts))
    tokens = tower.tokenize([cell[0] for row in cells for cell in row])
    encode(tower, tokens[:8], args.batch, trim=True)  # the first call pays for what all share
    pairs = []
    for _ in range(args.repeats):
        (trimmed, fast), (full, slow) = (encode(tower, tokens, args.batch, trim=trim) for trim in (True, False))
        difference = float((F.normalize(trimmed, dim=1) - F.normalize(full, dim=1)).abs().max())
        if difference > TOLERANCE:
            raise SystemExit(f"{args.backbone}: unit vectors differ by {difference:.1e}: the towers do not agree")
        pairs.append((fast, slow))
    fast, slow = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    sys.stdout.write(
        f"{args.backbone}, {len(tokens)} texts of at most {int(tokens.argmax(1).max()) + 1} tokens, "
        f"{args.threads} threads: full {slow:.2f} s, trimmed {fast:.2f} s, trimmed/full {ratio:.3f}; "
        f"largest difference {difference:.1e}\n"
    )


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
from rsc_seg.cli.benchmark_all import main

if __name__ == "__main__":
    raise SystemExit(main())

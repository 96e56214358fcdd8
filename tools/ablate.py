#!/usr/bin/env python3
from rsc_seg.cli.ablate import main

if __name__ == "__main__":
    raise SystemExit(main())

#!/usr/bin/env python3
from rsc_seg.cli.report import main

if __name__ == "__main__":
    raise SystemExit(main())

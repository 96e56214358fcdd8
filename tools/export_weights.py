#!/usr/bin/env python3
from rsc_seg.cli.export_weights import main

if __name__ == "__main__":
    raise SystemExit(main())

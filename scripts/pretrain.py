"""The ``jigsawssl pretrain`` command; ``python scripts/pretrain.py --help`` lists its keys."""

import sys

from jigsawssl.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))

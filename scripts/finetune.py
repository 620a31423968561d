"""The ``jigsawssl finetune`` command; ``python scripts/finetune.py --help`` lists its keys."""

import sys

from jigsawssl.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))

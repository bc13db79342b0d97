"""CogVideoX fine-tuning: the rooms behind `train_video.py`. See README.md for the map.

Every command comes through here first, so this is where a Python without the packages is told in one line.
"""

import os
import sys
from importlib.util import find_spec

# By import name; requirements.txt has their versions.
_NEEDED = (
    "torch deepspeed sat transformers sentencepiece safetensors omegaconf einops numpy PIL av imageio tensorboardX "
    "tqdm yaml"
).split()


def _end_without_packages() -> None:
    missing = [name for name in _NEEDED if name not in sys.modules and find_spec(name) is None]
    if not missing:
        return
    if os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(
            f"error: {sys.executable} lacks {', '.join(missing)}: activate the environment that the shell scripts made "
            "(`. .venv/bin/activate`), or `pip install -r requirements.txt`\n"
        )
    raise SystemExit(2)


_end_without_packages()

"""Write the quickstart's text encoder: a sentencepiece tokenizer and a tiny T5 v1.1 encoder, in transformers' layout.

    python tools/quickstart_t5.py

The tokenizer is trained on the sentences below (written for this project, CC0). The encoder is random, not trained:
with the scales chosen here different captions have clearly different hidden states, which is all that the quickstart's
network needs. The files are in the repository; this script is kept so that everybody can see, and change, how they were
made. Two runs write the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
from transformers import T5Config, T5EncoderModel

ROOT = Path(__file__).resolve().parent.parent
T5_FOLDER = ROOT / "assets" / "quickstart" / "t5"

VOCAB_SIZE = 416
SEED = 20240806
CONFIG = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 64,
    "d_kv": 16,
    "num_heads": 4,
    "d_ff": 128,
    "num_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.1,
    "is_encoder_decoder": False,
    "use_cache": False,
}

# Standard deviation of each weight by the end of its name. Queries and keys make attention choose (T5 does not divide
# the scores by √d_kv); a large `o` carries the caption into the padding tokens too, which CogVideoX does not mask.
WEIGHT_STD = {
    "embed_tokens.weight": 1.0,
    "shared.weight": 1.0,
    "SelfAttention.q.weight": 0.075,
    "SelfAttention.k.weight": 0.075,
    "SelfAttention.v.weight": 0.125,
    "SelfAttention.o.weight": 0.375,
    "relative_attention_bias.weight": 0.5,
    "wi_0.weight": 0.125,
    "wi_1.weight": 0.125,
    "wo.weight": 0.09,
}

SUBJECTS = (
    "a big gray cartoon rabbit",
    "a man in a dark suit with a red bow tie",
    "a man with short brown hair",
    "a person in black trousers",
    "a young woman in a yellow coat",
    "an old man with a white beard",
    "two children in blue shirts",
    "a small brown dog",
    "a white cat with green eyes",
    "a red bus",
    "a bicycle with a rusty chain",
    "a flock of birds",
    "a girl riding a horse",
    "a boy on a skateboard",
    "a chef in a white apron",
)
ACTIONS = (
    "walks past",
    "sits in",
    "stands beside",
    "looks at",
    "talks in front of",
    "crawls out of",
    "turns toward",
    "runs across",
    "leans on",
    "waits behind",
    "drives along",
    "climbs over",
    "jumps onto",
    "sleeps under",
    "moves slowly through",
)
PLACES = (
    "a street lined with brick houses",
    "a bright green meadow",
    "a car with a blue striped window shade",
    "a gray stone wall",
    "a dark green fence",
    "a burrow under a mossy tree",
    "a table in a quiet kitchen",
    "the beach at sunset",
    "a snowy mountain",
    "a river in the forest",
    "a busy market",
    "an empty train station",
    "a city at night",
    "a garden full of flowers",
    "the beige ceiling of an old car",
)
VIEWS = (
    "",
    "Close view: ",
    "Close-up of the face: ",
    "Seen from above, ",
    "In slow motion, ",
    "In black and white, ",
    "On a rainy day, ",
    "The camera follows as ",
)
ENDINGS = (
    "",
    ", tilting the head",
    ", stretching both arms wide and yawning",
    " while leaves fall",
    " and cars pass behind a bollard",
    ", smiling at the camera",
    " in warm evening light",
    ", filmed with a shaky hand",
)
PLAIN = (
    "Waves break on black rocks and white foam runs back into the sea.",
    "Smoke rises from a chimney into a clear morning sky.",
    "Steam comes out of a cup of coffee on a wooden table.",
    "A candle burns in a dark room and its flame trembles.",
    "Clouds move quickly over the roofs of a small town.",
    "Rain runs down a window; outside, lights of the street are blurred.",
    "A yellow taxi stops, the door opens, and somebody gets in.",
    "Hands knead dough on a floured board, then shape it into bread.",
    "The parked bicycle leans on the fence beside the road.",
    "Green leaves sway in the wind in front of a red barn.",
    "A plane crosses the sky, leaving a thin white line.",
    "Fish swim in circles above the sand of an aquarium.",
    "An anime girl with pink hair waves; the background is painted in watercolour.",
    "A spaceship lands on a blue planet, realistic, 4k, highly detailed.",
    "Animation of a robot that dances on the moon, 8 frames per second.",
    "An elderly couple dances slowly at their wedding while guests clap.",
    "The train passes through a tunnel and comes out above a deep valley.",
    "A football player kicks the ball high over the goal; the crowd cheers.",
    "Snow falls on a small wooden church with a tall tower.",
    "A butterfly opens its orange wings on a purple flower.",
    "Macro shot of an ant carrying a piece of bread across dry soil.",
    "A surfer rides a huge wave, then falls and disappears in the spray.",
    "Traffic at a crossing, time lapse, headlights drawing red and white lines.",
    "Elephants walk in single file through tall grass toward the water.",
    "A potter presses both thumbs into wet clay that spins on the wheel.",
    "Golden wheat bends in the wind below a stormy, purple sky.",
    "A violinist plays alone on an empty stage under a single lamp.",
    "Drone view over a harbour with sailing boats and an orange lighthouse.",
    "A nurse opens the curtains and sunlight floods the hospital room.",
    "Portrait of a laughing baby that reaches for soap bubbles.",
    "A knight in shining armour lifts his sword before a burning castle.",
    "Bees crawl over honeycomb; the picture is sharp in the middle and soft around.",
    "A glass of juice tips over and the liquid spreads over the newspaper.",
    "Wolves howl on a frozen lake beneath northern lights.",
    "A carpenter planes a board, and thin curls of wood drop to the floor.",
    "Fireworks explode above the bridge and are mirrored in the water.",
    "A sleepy panda chews bamboo, scratches its ear, and rolls on its back.",
    "The dancer spins faster and faster until her skirt is a blurred circle.",
    "Vintage footage of workers leaving a factory through an iron gate.",
    "A submarine glides past coral, jellyfish, and a sunken ship.",
)


def sentences() -> Iterator[str]:
    """Captions like those that people write, in a fixed order."""
    yield from PLAIN
    place_of = 0
    for subject_of, subject in enumerate(SUBJECTS):
        for action_of, action in enumerate(ACTIONS):
            place_of += 1
            view = VIEWS[(subject_of + action_of) % len(VIEWS)]
            ending = ENDINGS[(subject_of + 3 * action_of) % len(ENDINGS)]
            sentence = f"{view}{subject} {action} {PLACES[place_of * 7 % len(PLACES)]}{ending}."
            yield sentence[0].upper() + sentence[1:]


def train_tokenizer() -> bytes:
    """A sentencepiece unigram model with T5's special tokens (`<pad>` 0, `</s>` 1, `<unk>` 2) and all of ASCII."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        required_chars="".join(map(chr, range(33, 127))),
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def random_encoder() -> T5EncoderModel:
    """The tiny encoder with weights drawn in the order of their names."""
    encoder = T5EncoderModel(T5Config.from_dict(CONFIG)).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in sorted(encoder.named_parameters()):
            if "layer_norm" not in name:
                std = next(std for end, std in WEIGHT_STD.items() if name.endswith(end))
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    return encoder


def write(out: Path) -> None:
    """Write tokenizer and encoder into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "spiece.model").write_bytes(train_tokenizer())
    tokenizer_config = {
        "tokenizer_class": "T5Tokenizer",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": 0,
        "model_max_length": 512,
    }
    _write_json(out / "tokenizer_config.json", tokenizer_config)
    random_encoder().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    # The version that wrote the file says nothing about the weights and would change them with every upgrade.
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    _write_json(out / "config.json", {key: value for key, value in config.items() if key != "transformers_version"})


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Write the encoder where the repository keeps it, or into `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=T5_FOLDER, help="folder for the tokenizer and the encoder")
    out = parser.parse_args().out
    write(out)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{size / 1024:.0f} KiB in {out}", file=sys.stderr)


if __name__ == "__main__":
    main()

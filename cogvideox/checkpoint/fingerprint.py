"""What a live model was when it was saved: its parameters' fingerprints and its outputs on fixed noise, in a file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox.errors import UserError

# An integer type as wide as the values, to read their bits.
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
AT_A_TIME = 1 << 22  # values widened to 64 bits at once
SAMPLES = 8  # values of a tensor that are kept
RAW, EMA = "raw", "ema"


@dataclass(frozen=True)
class Fingerprint:
    """A tensor's bits in one number; its norm and a few of its values, to tell by how much two differ."""

    checksum: int
    norm: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Fingerprint:
        """The sum of (2 i + 1) bits_i modulo 2^64: any one value changed changes it. The same on every device."""
        values = tensor.detach().contiguous().flatten()
        bits = values.view(BITS[values.element_size()])
        total = 0
        for start in range(0, bits.numel(), AT_A_TIME):
            part = bits[start : start + AT_A_TIME].long()
            places = torch.arange(start, start + part.numel(), device=part.device)
            total += int((part * (2 * places + 1)).sum())
        samples = values[:: max(1, values.numel() // SAMPLES)][:SAMPLES]
        return cls(
            total % 2**64,
            float(torch.linalg.vector_norm(values, dtype=torch.float64)),
            tuple(samples.double().tolist()),
        )


@dataclass(frozen=True)
class LiveModel:
    """One model parallel rank's parameters by `RAW` and `EMA` and name, and the outputs that all ranks agree on."""

    fingerprints: Mapping[str, Mapping[str, Fingerprint]]
    outputs: Mapping[str, Tensor]

    def content(self) -> dict[str, Any]:
        """What `read` makes the same of, in types that load without running code."""
        plain = {
            kind: {name: [found.checksum, found.norm, found.samples] for name, found in each.items()}
            for kind, each in self.fingerprints.items()
        }
        return {"fingerprints": plain, "outputs": dict(self.outputs)}

    @classmethod
    def read(cls, file: Path) -> LiveModel:
        """Raises UserError where it is damaged."""
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            kinds = {
                kind: {name: Fingerprint(*numbers) for name, numbers in each.items()}
                for kind, each in content["fingerprints"].items()
            }
            return cls(kinds, dict(content["outputs"]))
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
            raise UserError(f"{file}: cannot be read ({error!r}); verify another checkpoint") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: is no record of a live model ({error!r}); verify another checkpoint") from error

    def expected(self, kind: str) -> dict[str, Fingerprint]:
        """All parameters of the model with the weights of `kind`: what has no average has its own value."""
        return {**self.fingerprints[RAW], **self.fingerprints.get(kind, {})}


def differing(expected: Mapping[str, Fingerprint], found: Mapping[str, Tensor]) -> list[str]:
    """A line for each parameter that is not bit for bit what it was: which one, and by how much where that is known."""
    lines = []
    for name, live in expected.items():
        if name not in found:
            lines.append(f"{name}: not in the checkpoint")
            continue
        here = Fingerprint.of(found[name])
        if here.checksum != live.checksum:
            apart = max((abs(a - b) for a, b in zip(here.samples, live.samples, strict=False)), default=0.0)
            compared = f"of {len(live.samples)} values compared the largest difference is {apart:.3g}"
            lines.append(f"{name}: norm {here.norm:.7g}, live {live.norm:.7g}; {compared}")
    return lines

"""Random numbers by key: a hash of (seed, component path, tensor index, sample) seeds one generator per draw.

No global generator is read or moved, and no draw depends on how many came before it: chunks, blocks, devices and the
order of work cannot change a number. Everything is drawn on the CPU in one dtype, then moved.
"""

from __future__ import annotations

import hashlib
import secrets

import attrs
import torch
from torch import Tensor


@attrs.frozen
class Key:
    """Where in a call a random number is drawn."""

    seed: int
    path: tuple[str | int, ...] = ()

    def at(self, *step: str | int) -> Key:
        """Return the key of a place below this one."""
        return Key(self.seed, (*self.path, *step))

    def generator(self) -> torch.Generator:
        """Return a fresh CPU generator for this place."""
        digest = hashlib.blake2b(repr((self.seed, self.path)).encode(), digest_size=8).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal noise of the shape of one example of `like`, in its dtype, on its device."""
        noise = torch.randn(like.shape[1:], generator=self.generator(), dtype=torch.float32, device="cpu")
        return noise.to(like.device, like.dtype)


def fresh_seed() -> int:
    """Return a seed from the operating system's entropy, not from any generator of the process."""
    return secrets.randbits(63)

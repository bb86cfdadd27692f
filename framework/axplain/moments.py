"""Count, mean and spread of samples that come in chunks; squares of sums are never subtracted from one another."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class Moments:
    """How many samples so far, their mean, and the sum of their squared deviations from it, element by element."""

    count: int
    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> Moments:
        """Return the moments of (samples, ...)."""
        if len(samples) == 1:
            return cls(1, samples[0], torch.zeros_like(samples[0]))
        mean = samples.mean(0)
        return cls(len(samples), mean, (samples - mean).square().sum(0))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of samples together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        share, step = other.count / count, other.mean - self.mean
        spread = self.spread + other.spread + step * step * (self.count * share)
        return Moments(count, self.mean + step * share, spread)

    @property
    def variance(self) -> Tensor:
        """Return the mean squared deviation."""
        return self.spread / self.count

    @property
    def standard_error(self) -> Tensor:
        """Return the standard error of the mean; of two samples or more."""
        return (self.spread / (self.count * (self.count - 1))).sqrt()


def merged(before: Moments | None, more: Moments) -> Moments:
    """Return the moments of the samples so far, if any, and some more."""
    return more if before is None else before.merge(more)

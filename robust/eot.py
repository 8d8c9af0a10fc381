"""EOT: a randomised model, judged and attacked in expectation over its own draws."""

from __future__ import annotations

import copy
import math
from typing import Any, Final, Literal, Self, get_args

import torch
from torch import Tensor, nn

from robust.errors import InputError
from robust.losses import spread
from robust.randomness import own_randomness, reseed
from robust.rng import Streams, content_ids
from robust.target import Target

Vote = Literal["expectation", "majority"]
_JUDGED: Final = 4  # times the samples of a search go into a judgement
_STILL: Final = 4  # draws that slopes are measured over
_ROWS: Final = 64  # copies of a sample that a pass takes at most
_PROBES: Final = 8


class EOT(Target):
    """A target whose answer is that of K independent draws of a randomised model.

    Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397). Its logits are the logarithm
    of the mean softmax probability over the draws, so gradients are those of the expectation.

    A draw's seed is a hash of (seed, the input's content, its number): the same input gets the same draws
    in whatever batch, order or shard it stands, another input others. Every sample is therefore passed by
    itself, K copies at once (or one by one where the model draws once for a whole batch). The caller's
    random states (torch, CUDA, numpy, random) are untouched, and evaluations in threads of one process take
    turns with them, a pass at a time; a model with a generator of its own, which
    cannot be seeded from outside, stays random and is reported as such.

    Judging takes 4 K draws, others than the search's: a search that visits hundreds of points would
    else be paid for its luck.

    Args:
        model: randomised module, or a Target around one.
        samples: K, draws for an answer in the search, >= 2.
        vote: "expectation": the class with the highest mean probability; "majority": the class that most
            draws give (gradients are the expectation's in both).
        seed: of the draws.
        options: as for Target; a Target as `model` brings its own.

    Raises:
        InputError: samples < 2, unknown vote, options beside a Target.
    """

    randomized = True

    def __init__(
        self,
        model: nn.Module | Target,
        samples: int = 32,
        *,
        vote: Vote = "expectation",
        seed: int = 0,
        **options: Any,
    ) -> None:
        if not isinstance(samples, int) or samples < 2:
            raise InputError(f"eot: samples: expected an integer >= 2, got {samples!r}")
        if vote not in get_args(Vote):
            raise InputError(f"eot: vote: expected one of {', '.join(get_args(Vote))}, got {vote!r}")
        if isinstance(model, EOT):
            raise InputError("eot: the model is an EOT already; set its samples where it is made")
        if isinstance(model, Target) and options:
            raise InputError(f"{', '.join(options)}: the model is a Target, which has its own; give it there")
        inner = self.inner = model if isinstance(model, Target) else Target(model, **options)
        found = inner.found_probabilities
        super().__init__(
            inner.model, bounds=inner.bounds, device=inner.device, probabilities=inner.probabilities
        )
        self.found_probabilities = found
        self.normalize, self.preprocessing = inner.normalize, inner.preprocessing
        self.samples, self.vote, self.seed = samples, vote, seed
        self.draws = _JUDGED * samples
        self._purpose = "judge"
        self._still = False
        self._alone: bool | None = None

    @property
    def _cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def probabilities(self) -> bool:
        """Whether the model returns probabilities: one answer for judge, searcher and the target inside."""
        return self.inner.probabilities

    @probabilities.setter
    def probabilities(self, value: bool) -> None:
        self.inner.probabilities = value

    @property
    def found_probabilities(self) -> bool:
        """Of the target inside, which other evaluations may be given."""
        return self.inner.found_probabilities

    @found_probabilities.setter
    def found_probabilities(self, value: bool) -> None:
        self.inner.found_probabilities = value

    @property
    def draws_from_all(self) -> bool:
        """See Target.draws_from_all."""
        return self.inner.draws_from_all

    def searcher(self) -> Self:
        """The same expectation by fewer draws, and other ones."""
        other = copy.copy(self)
        other.draws, other._purpose = self.samples, "search"
        return other

    def still(self) -> Self:
        """Few draws that are the same for every input: a surface that stands still, whose slopes can be measured."""
        other = copy.copy(self)
        other.draws, other.vote, other._purpose, other._still = _STILL, "expectation", "still", True
        return other

    def twin(self, model: nn.Module) -> Self:
        """See Target.twin."""
        twin = super().twin(model)
        twin.inner = self.inner.twin(model)
        return twin

    def logits(self, x: Tensor) -> Tensor:
        """Log mean probabilities of inputs in bounds: (N, ...) -> (N, C), float32. See Target.logits."""
        keys = [0] * len(x) if self._still else content_ids(x.detach()).tolist()
        with own_randomness([self.device] if self._cuda else []):
            if self._alone is None:
                self._alone = self._shares_its_draws(x)
            return torch.cat([self._expect(row, key) for row, key in zip(x.split(1), keys, strict=True)])

    def _expect(self, row: Tensor, key: int) -> Tensor:
        size = 1 if self._alone else _ROWS
        parts = []
        for start in range(0, self.draws, size):
            reseed(Streams.key(self.seed, (self._purpose, key, start)), cuda=self._cuda)
            copies = row.expand(min(size, self.draws - start), *row.shape[1:])
            parts.append(self.inner.logits(copies).log_softmax(1))
        drawn = torch.cat(parts)
        mean = drawn.logsumexp(0, keepdim=True) - math.log(len(drawn))
        if self.vote == "expectation" or torch.is_grad_enabled():
            return mean
        votes = nn.functional.one_hot(drawn.argmax(1), mean.shape[1]).sum(0, keepdim=True)
        winner = (votes + mean.exp() / 2).argmax(1, keepdim=True)  # ties go to the likelier class
        ahead = torch.nextafter(mean.amax(1, keepdim=True), mean.new_tensor(torch.inf))
        return torch.where(winner == mean.argmax(1, keepdim=True), mean, mean.scatter(1, winner, ahead))

    @torch.no_grad()
    def _shares_its_draws(self, x: Tensor) -> bool:
        """Whether copies of an input in one batch get one draw; found on noise, whatever the data."""
        low, high = self.bounds
        streams = Streams(0, torch.zeros(1, dtype=torch.int64, device=x.device), ("eot",))
        probe = streams.uniform(x.shape[1:], low, high).to(x.dtype)
        reseed(0, cuda=self._cuda)
        logits = self.inner.logits(probe.expand(_PROBES, *probe.shape[1:]))
        return bool((logits - logits[:1]).abs().amax() <= 1e-5 * spread(logits).amax())

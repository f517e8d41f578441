"""Beam search, greedy or multinomial: several continuations of a response at once."""

import random
from collections.abc import Iterator, Sequence

import torch

from prefstage.sampling.base import SamplingConfig
from prefstage.sampling.decoding import Batch, Generated, Row


def search_beams(
    batch: Batch, rows: Sequence[Row], config: SamplingConfig, stop_ids: frozenset[int]
) -> Iterator[Generated]:
    """Generate one response for each row by beam search: `generate_rows` with several beams.

    Each step keeps the `beams` unfinished continuations of the largest log-probability, among
    candidates that are the likeliest ones at temperature 0 and are drawn without replacement
    otherwise; responses compete by log-probability a token. It ends when no continuation is
    ahead of the worst of `beams` finished responses, and gives the best one. Candidates are
    drawn from a row's own stream, so that a response depends neither on the batch nor on order.

    Args:
        batch: The state of each row's prompt, as often as there are beams.
        rows: As for `generate_rows`, and so the next two.
        config: Likewise.
        stop_ids: Likewise.

    Yields:
        Each row's response as soon as it is finished.

    Source:
        `generate` of transformers with num_beams and do_sample, length_penalty 1 and
        early_stopping False; as used by arXiv:2508.18312, App. B.4.
    """
    beams = config.beams
    alive = list(range(len(rows)))
    searches = [_Search(row, beams, stop_ids) for row in rows]
    while True:
        candidates = _candidates(batch.logits, [searches[row] for row in alive], config)
        kept, places, tokens = [], [], []
        for place, (row, found) in enumerate(zip(alive, candidates, strict=True)):
            chosen = searches[row].advance(found)
            if chosen:
                kept.append(row)
                places += [place * beams + beam for beam, _ in chosen]
                tokens += [token for _, token in chosen]
            else:
                best = searches[row].best
                yield Generated(row, best, stopped=best[-1] in stop_ids)
        if not kept:
            return
        batch.keep(places)
        batch.advance(tokens)
        alive = kept


class _Search:
    """The state of one row.

    Attributes:
        scores: Log-probability of each beam; -inf of those that are no continuation. [beams].
        stream: The row's random numbers.
        width: Candidates that are looked at in a step: enough to go on with whichever stop.
    """

    def __init__(self, row: Row, beams: int, stop_ids: frozenset[int]) -> None:
        self.scores = [0.0] + [-torch.inf] * (beams - 1)
        self.stream = random.Random(row.seed)
        self.width = max(2, 1 + len(stop_ids)) * beams
        self._stop_ids = stop_ids
        self._longest = row.max_new_tokens
        self._written: list[tuple[int, ...]] = [()] * beams
        self._finished: list[tuple[float, tuple[int, ...]]] = []  # the best first

    @property
    def best(self) -> tuple[int, ...]:
        """The best finished response."""
        return self._finished[0][1]

    def advance(self, candidates: Sequence[tuple[float, int, int]]) -> list[tuple[int, int]]:
        """Take the best continuations of a step.

        Args:
            candidates: (log-probability, beam, token), in the order of their choice.

        Returns:
            (beam, token) of each new beam; nothing when the search is over.
        """
        beams, length = len(self.scores), len(self._written[0]) + 1
        running = []
        for rank, (score, beam, token) in enumerate(candidates):
            if token not in self._stop_ids and length < self._longest:
                running.append((score, beam, token))
            elif rank < beams and score > -torch.inf:
                response = (*self._written[beam], token)
                self._finished.append((score / length, response))
        self._finished = sorted(self._finished, key=lambda each: -each[0])[:beams]
        running = sorted(running, key=lambda each: -each[0])[:beams]
        full = len(self._finished) == beams
        if not running or (full and running[0][0] / length <= self._finished[-1][0]):
            return []
        # drawn candidates may be fewer than beams; what fills up is no continuation
        running += [(-torch.inf, *running[0][1:])] * (beams - len(running))
        self.scores = [score for score, _, _ in running]
        self._written = [(*self._written[beam], token) for _, beam, token in running]
        return [(beam, token) for _, beam, token in running]


def _candidates(
    logits: torch.Tensor, searches: Sequence[_Search], config: SamplingConfig
) -> list[list[tuple[float, int, int]]]:
    """What each row may go on with: (log-probability, beam, token).

    Args:
        logits: Of each beam's next token. [rows * beams, vocabulary].
        searches: The rows.
        config: Temperature, top_k, top_p and the number of beams.
    """
    vocabulary, width = logits.shape[-1], searches[0].width
    before = torch.tensor([each.scores for each in searches], dtype=torch.float64)
    after = _log_probabilities(logits, config, least=width // config.beams)
    total = after.view(len(searches), config.beams, vocabulary)
    total = (total + before.to(total.device)[..., None]).flatten(1)
    if config.temperature == 0:
        scores, places = total.topk(min(width, total.shape[1]), dim=-1)
    else:
        scores, places = _drawn(total, searches)
    return [
        [
            (score, place // vocabulary, place % vocabulary)
            for score, place in zip(*row, strict=True)
        ]
        for row in zip(scores.tolist(), places.tolist(), strict=True)
    ]


def _log_probabilities(logits: torch.Tensor, config: SamplingConfig, *, least: int) -> torch.Tensor:
    """Of each token, cut and heated as transformers does it. [rows * beams, vocabulary]."""
    found = torch.log_softmax(logits.double(), dim=-1)
    if config.temperature == 0:
        return found
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    found = found / config.temperature
    ids = logits.new_zeros((len(logits), 0), dtype=torch.long)
    if config.top_k:
        found = TopKLogitsWarper(config.top_k, min_tokens_to_keep=least)(ids, found)
    if config.top_p < 1:
        found = TopPLogitsWarper(config.top_p, min_tokens_to_keep=least)(ids, found)
    return found


def _drawn(total: torch.Tensor, searches: Sequence[_Search]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw candidates without replacement by their probability. Both [rows, candidates].

    Each is the inverse of the cumulative distribution of what is left, in the order of beams
    and token ids, at a number of the row's stream. Where nothing is left, -inf.
    """
    left = torch.softmax(total, dim=-1)
    scores, places = [], []
    for _ in range(searches[0].width):
        cumulative = left.cumsum(dim=-1)
        mass = cumulative[:, -1:]
        points = torch.tensor([[each.stream.random()] for each in searches], dtype=torch.float64)
        place = torch.searchsorted(cumulative, points.to(total.device) * mass, right=True)
        place = place.clamp_max(total.shape[1] - 1)
        scores.append(torch.where(mass > 0, total.gather(1, place), -torch.inf))
        places.append(place)
        left = left.scatter(1, place, 0.0)
    return torch.cat(scores, dim=1), torch.cat(places, dim=1)

"""How often a judge prefers the policy's answers to the start's, as training goes on."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import Field

from prefstage.core import LEDGER, Config, InputError, Ledger
from prefstage.data import Candidates, ResponseEncoder
from prefstage.judging import Comparison, as_judge, stored
from prefstage.judging.judged import compare_all
from prefstage.sampling.base import SamplingConfig, collect, requests_for
from prefstage.sampling.transformers_sampler import TransformersSampler


class WinRateSettings(Config):
    """A win rate at every measurement: answers are sampled and judged."""

    judge: str = Field(description="Who compares, as for prefstage judge.")
    prompts: str | None = Field(
        default=None, description="File, folder or Hub id; None: the first evaluation set's."
    )
    max_prompts: int = Field(default=200, ge=1, description="The first so many; each is answered.")
    sampling: SamplingConfig = Field(
        default=SamplingConfig(responses=1), description="How the policy answers."
    )


class StartWinRate:
    """Lets a policy in training answer prompts, and compares with what it answered at the start.

    Answers and judgments are kept in a ledger under `folder`: a training that goes on has the
    start's answers, and nothing is judged twice.

    Args:
        settings: Who judges, and how is sampled.
        prompts: What to answer; the first `max_prompts` of them.
        folder: Where the ledger lies.
    """

    def __init__(
        self, settings: WinRateSettings, prompts: Sequence[Candidates], folder: Path
    ) -> None:
        self.settings, self._path = settings, folder / LEDGER
        rows = [prompts[index] for index in range(min(len(prompts), settings.max_prompts))]
        self._requests = requests_for(rows, responses=1)

    def begin(self, encoder: ResponseEncoder | None, step: int) -> None:
        """Check that the policy can answer; before the first step drop another training's answers.

        Args:
            encoder: Tokenizer and template of the policy.
            step: Optimiser steps done.

        Raises:
            InputError: If there is no encoder.
        """
        InputError.unless(
            encoder is not None,
            saw="a win rate, and neither encoder nor tokenizer",
            expected="the tokenizer that the policy answers with",
            cure="give encoder=ResponseEncoder(tokenizer)",
        )
        for file in self._path.parent.glob(f"{self._path.name}*") if step == 0 else ():
            file.unlink()

    def measure(self, model: Any, encoder: ResponseEncoder, step: int) -> dict[str, float]:
        """Answer all prompts, and compare.

        Args:
            model: The policy now, in evaluation mode afterwards.
            encoder: Its tokenizer and template.
            step: Optimiser steps done; what is answered at step 0 is the start's.

        Returns:
            "dynamics/win_rate", the mean P(now ≻ start) in [0, 1], ½ where both gave the same
            answer; "dynamics/win_rate_error", its standard error; and
            "dynamics/win_rate_undecided", comparisons without a readable verdict, left out.
            Nothing at step 0, and where no comparison was decided.

        Source:
            Chen et al. 2024, arXiv:2405.19534, Section 5 (win rate against π_Ref).
        """
        sampler = TransformersSampler(
            model, encoder.tokenizer, self.settings.sampling, encoder=encoder
        )
        with ExitStack() as stack:
            ledger = stack.enter_context(Ledger(self._path))
            now, start = (
                {s.prompt_id: s.text for s in collect(sampler, self._requests, ledger, key=key)}
                for key in (f"step {step}", "step 0")
            )
            judge = stack.enter_context(as_judge(self.settings.judge))
            judgments = compare_all(
                stored(judge, ledger),
                [Comparison(r.prompt_id, r.prompt, now[r.prompt_id], start[r.prompt_id])
                 for r in self._requests if step],
            )  # fmt: skip
        rates = [judgment.probability for judgment in judgments if judgment.status == "decided"]
        if not rates:
            return {}
        error = stdev(rates) / len(rates) ** 0.5 if len(rates) > 1 else 0.0
        return {
            "dynamics/win_rate": fmean(rates),
            "dynamics/win_rate_error": error,
            "dynamics/win_rate_undecided": len(judgments) - len(rates),
        }

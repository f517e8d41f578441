"""A policy's answers to the prompts of an evaluation, sampled durably."""

import logging
from collections.abc import Sequence

from prefstage.core.ledger import Ledger
from prefstage.core.progress import progress
from prefstage.data.records import Candidates, Prompt, prompt_id_of
from prefstage.evaluating.answers import Answers, gather_answers
from prefstage.sampling import Sample, Sampler, collect, requests_for
from prefstage.sampling.base import cut_thoughts

_log = logging.getLogger(__name__)


def answer_prompts(sampler: Sampler, prompts: Sequence[Prompt], ledger: Ledger) -> Answers:
    """Let a policy answer each prompt once.

    Args:
        sampler: Who answers.
        prompts: What is asked; equal prompts once.
        ledger: Where each answer goes as it arrives; a repeated call asks only for what
            is not there.

    Returns:
        One answer a prompt, without what was thought before it, empty ones included: a policy
        that says nothing (or was cut in its thought, which is logged) loses there.
    """
    asked = {prompt_id_of(prompt): prompt for prompt in prompts}
    rows = [Candidates(key, prompt, (), (), ()) for key, prompt in asked.items()]
    found = dict[str, Sample]()
    requests = requests_for(rows, responses=1)
    with progress(f"answers of {sampler.name}", len(rows)) as tick:
        for sample in collect(sampler, requests, ledger, key=sampler.fingerprint):
            found[sample.prompt_id] = sample
            tick()
    for line in cut_thoughts(found.values()):
        _log.warning("%s: %s", sampler.name, line)
    return gather_answers(sampler.name, [(asked[key], found[key].text) for key in asked])

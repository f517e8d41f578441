"""From one kind of record to another."""

from prefstage.data.faults import RowFault
from prefstage.data.records import Candidates, Pair, generation_of, generations_of


def candidates_of_pair(pair: Pair) -> Candidates:
    """A prompt with the two responses of a pair, and all that is known of them.

    Raises:
        RowFault: If a response has tool calls, which candidates cannot hold.
    """
    for name, (message, *_) in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if message.get("tool_calls") or not message["content"].strip():
            raise RowFault(
                name,
                saw="a tool call",
                expected="a response of text alone",
                cure="load such rows as pairs (load_pairs), or remove them",
            )
    return Candidates(
        prompt_id=pair.prompt_id,
        prompt=pair.prompt,
        responses=(pair.chosen[0]["content"], pair.rejected[0]["content"]),
        sources=(pair.source_chosen, pair.source_rejected),
        scores=(pair.score_chosen, pair.score_rejected),
        generations=generations_of(map(generation_of, (pair.chosen[0], pair.rejected[0]))),
    )

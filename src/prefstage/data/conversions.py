"""From one kind of record to another."""

from prefstage.data.faults import RowFault
from prefstage.data.records import SAMPLED, Candidates, Generation, Message, Pair


def candidates_of_pair(pair: Pair) -> Candidates:
    """A prompt with the two responses of a pair; their sources and scores go with them.

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
        generations=_generations(pair),
    )


def _generations(pair: Pair) -> tuple[Generation | None, ...]:
    """How a policy wrote the responses; nothing where nobody sampled any."""
    both = tuple(generation_of(message) for (message,) in (pair.chosen, pair.rejected))
    return both if any(both) else ()


def generation_of(message: Message) -> Generation | None:
    """What `response_message` put into a message besides its text.

    Args:
        message: An assistant's.

    Returns:
        The generation, or None where the message has neither a thought nor tokens.
    """
    thought, sampled = message.get("reasoning_content"), message.get(SAMPLED)
    if thought is None and not sampled:
        return None
    known = sampled or {}
    return Generation(thought, tuple(known.get("token_ids", ())), known.get("tokenizer", ""))

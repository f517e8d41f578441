"""PairRM as judge: both responses are read together, in both orders."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from prefstage.core import ModelError, Task, foreign_files, load_whole
from prefstage.data import Prompt, load_tokenizer
from prefstage.data.compat import plain_ids
from prefstage.judging.base import (
    TIE,
    Comparison,
    Judgment,
    answered_once,
    content_of,
    plain_prompt,
    sigmoid,
)
from prefstage.judging.reward_model import ModelJudge, ModelOptions, loading_settings

SOURCE = "<|source|>"
CANDIDATES = ("<|candidate1|>", "<|candidate2|>")

# Word for word what PairRM is given for conversations, misspelling included.
_INSTRUCTION = (
    "Finish the following coversation in each i-th turn by filling in <Response i> with your"
    " response."
)


# Token ids of both orders of a comparison, equally long [tokens]: the source, then `a` as candidate
# 1 and `b` as candidate 2, or the other way round; and whether anything was left out to fit.
PairEncoding = tuple[tuple[int, ...], tuple[int, ...], bool]


@dataclass(frozen=True)
class PairRMEncoder:
    """``[CLS]<|source|>x[SEP][CLS]<|candidate1|>a[SEP][CLS]<|candidate2|>b[SEP]``.

    The source has at most `max_source_tokens`, and each candidate at most
    (`max_length` - the source's own length) // 2: lengths of this example alone, never of
    its batch. Where a conversation does not fit, its oldest turns are left out of source and
    candidates together, so that the responses in question stay; only then are texts cut at
    their end.

    Attributes:
        tokenizer: PairRM's tokenizer, with its marker tokens.
        style: "conversation" is the published `compare_conversations`; "plain" gives prompt
            and response as they are.
        max_source_tokens: With special tokens.
        max_length: Of source and both candidates together.
    """

    tokenizer: Any
    style: Literal["conversation", "plain"] = "conversation"
    max_source_tokens: int = 1224
    max_length: int = 2048

    def __call__(self, comparison: Comparison) -> PairEncoding:
        """Encode both orders of one comparison."""
        turns = turns_of(comparison.prompt)
        first = 0 if self.style == "conversation" else len(turns) - 1
        for oldest in range(first, len(turns)):
            source, a, b = self._texts(comparison, turns, oldest)
            head, head_cut = self._ids(SOURCE, source, self.max_source_tokens)
            room = (self.max_length - len(head)) // 2
            parts = [self._ids(mark, text, room) for mark in CANDIDATES for text in (a, b)]
            cut = head_cut or any(part_cut for _, part_cut in parts)
            if not cut:
                break
        (a1, _), (b1, _), (a2, _), (b2, _) = parts
        return (*head, *a1, *b2), (*head, *b1, *a2), cut or oldest > first

    def _texts(
        self, comparison: Comparison, turns: Sequence[tuple[str, str]], oldest: int
    ) -> tuple[str, str, str]:
        if self.style == "plain":
            return plain_prompt(comparison.prompt), comparison.a, comparison.b
        numbered = list(enumerate(turns, start=1))[oldest:]
        asked = [f"USER: {user}\nAssistant: <Response {i}>" for i, (user, _) in numbered]
        answered = [f"<Response {i}>: {assistant}" for i, (_, assistant) in numbered[:-1]]
        a, b = (
            "\n".join([*answered, f"<Response {len(turns)}>: {text}"])
            for text in (comparison.a, comparison.b)
        )
        return _INSTRUCTION + "\n".join(asked), a, b

    # One segment; whether its end was cut.
    def _ids(self, mark: str, text: str, limit: int) -> tuple[list[int], bool]:
        if any(token in text for token in self._control):
            # A response must not open a new segment: control tokens that it spells are split.
            start = self.tokenizer(mark, verbose=False)["input_ids"]
            whole = [*start[:-1], *plain_ids(self.tokenizer, text), start[-1]]
        else:
            whole = self.tokenizer(mark + text, verbose=False)["input_ids"]
        if len(whole) <= limit:
            return list(whole), False
        return [*whole[: limit - 1], whole[-1]], True

    @cached_property
    def _control(self) -> frozenset[str]:
        return frozenset({SOURCE, *CANDIDATES, "<|candidate|>", *self.tokenizer.all_special_tokens})


def turns_of(prompt: Prompt) -> list[tuple[str, str]]:
    """A conversation as (user, assistant) turns; the last one awaits its response.

    Args:
        prompt: Messages up to and with the last user turn. Messages of other roles than the
            assistant's (system, tool) count as the user's side; neighbours of one side are
            joined by a blank line.

    Returns:
        At least one turn; the last has an empty assistant text.
    """
    turns = [("", "")]
    for message in prompt:
        user, assistant = turns[-1]
        text = content_of(message)
        if message.get("role") == "assistant":
            turns[-1] = (user, _join(assistant, text))
        elif assistant:
            turns.append((text, ""))
        else:
            turns[-1] = (_join(user, text), "")
    return turns


def _join(start: str, more: str) -> str:
    return f"{start}\n\n{more}" if start else more


_CHECKPOINT = Task(
    "DebertaV2Model",
    "pretrained_model.* of the config's DeBERTa-v2 and head_layer.*",
    re.compile("Classification|QuestionAnswering"),
    "use a checkpoint in the layout of llm-blender/PairRM-hf",
)
_MARKERS = {
    "source_prefix_id": SOURCE,
    "cand1_prefix_id": CANDIDATES[0],
    "cand2_prefix_id": CANDIDATES[1],
}


class PairRMOptions(ModelOptions):
    """How PairRM is shown a comparison, and where it runs."""

    style: Literal["conversation", "plain"] = Field(
        default="conversation",
        description="conversation: as compare_conversations; plain: prompt and response bare.",
    )
    batch_size: int = Field(default=4, ge=1, description="Comparisons a forward pass.")
    device: str = Field(default="auto", description="auto (a GPU, or the CPU), cpu, cuda:1, mps.")


class PairRanker(DebertaV2PreTrainedModel):  # type: ignore[misc]  # transformers has no types
    """DeBERTa-v2 and a head on [h_source; h_candidate]; logit = s(a) - s(b).

    Parameter names are those of the published checkpoint.

    Source:
        Jiang, Ren & Lin 2023, arXiv:2306.02561, §3.2; checkpoint llm-blender/PairRM-hf.
    """

    base_model_prefix = "pretrained_model"

    def __init__(self, config: Any) -> None:
        """Build the modules with random weights from a DeBERTa-v2 configuration."""
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        width = config.hidden_size
        self.head_layer = nn.Sequential(
            nn.Dropout(config.drop_out),
            nn.Linear(2 * width, width),
            nn.Tanh(),
            nn.Dropout(config.drop_out),
            nn.Linear(width, config.n_tasks),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Logit that candidate 1 is better than candidate 2, s(1) - s(2), mean over tasks.

        Args:
            input_ids: Each row has each of the three marker tokens once. [batch, tokens].
            attention_mask: 1 on real tokens. [batch, tokens].

        Returns:
            With `logits`. [batch, 1], nats.
        """
        states = self.pretrained_model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        source, first, second = (
            states[torch.arange(len(input_ids)), (input_ids == marker).int().argmax(dim=1)]
            for marker in (getattr(self.config, name) for name in _MARKERS)
        )
        a, b = (self.head_layer(torch.cat([source, text], dim=-1)) for text in (first, second))
        return SequenceClassifierOutput(logits=(a - b).mean(dim=-1, keepdim=True))


class PairRMJudge(ModelJudge):
    """P(a ≻ b | x) = σ(½·(f(a, b) - f(b, a))), with f(a, b) = s(a) - s(b) read in that order.

    The verdict, f(a, b) - f(b, a) > 0, is the published one of both orders; halving makes
    the logit the mean of the two orders' logits, each of which PairRM was trained to pass
    through σ. Counts forward passes ("calls", two a comparison) and comparisons "truncated"
    to fit.
    """

    def __init__(
        self,
        model: PairRanker,
        tokenizer: Any,
        *,
        options: PairRMOptions | None = None,
        name: str = "PairRM",
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: The ranker.
            tokenizer: Its tokenizer, with the marker tokens.
            options: How to show comparisons and batch them.
            name: Short name for people.

        Raises:
            ModelError: If tokenizer and configuration disagree about the marker tokens.
        """
        self._options = options or PairRMOptions()
        super().__init__(model, tokenizer, name, reading={"style": self._options.style})
        self._encode = PairRMEncoder(tokenizer, style=self._options.style)
        for field, token in _MARKERS.items():
            wanted, known = getattr(model.config, field), tokenizer.convert_tokens_to_ids(token)
            ModelError.unless(
                known == wanted,
                saw=f"{name}: the tokenizer has {token} as id {known}, the config says {wanted}",
                expected="the same id in both",
                cure="use the tokenizer files that were published with the checkpoint",
            )

    @classmethod
    def load(cls, path: str, *, options: PairRMOptions | None = None) -> Self:
        """Load a checkpoint in the layout of ``llm-blender/PairRM-hf``.

        Args:
            path: Folder or Hub id: config.json (DeBERTa-v2 with the marker ids), tokenizer
                files, and weights named ``pretrained_model.*`` and ``head_layer.*``.
            options: How to show comparisons, batch and run it.

        Returns:
            The judge.

        Raises:
            ModelError: If the files are not there, or weights are missing, left over, of
                another shape, or not finite.
        """
        options = options or PairRMOptions()
        with foreign_files(
            path,
            saw=f"cannot load {path}",
            expected="a checkpoint in the layout of llm-blender/PairRM-hf",
            cure="check the path, or that the Hub id exists and can be reached",
        ):
            config = DebertaV2Config.from_pretrained(path)
        lacking = [n for n in (*_MARKERS, "n_tasks", "drop_out") if not hasattr(config, n)]
        ModelError.unless(
            not lacking,
            saw=f"{path}/config.json lacks {', '.join(lacking)}",
            expected="the configuration of a checkpoint like llm-blender/PairRM-hf",
            cure="use the -hf checkpoint; llm-blender/PairRM without -hf has another layout",
        )
        tokenizer = load_tokenizer(path)
        device_map, dtype = loading_settings(options.device, options.dtype)
        device_map = {"": "cuda"} if device_map == "auto" else device_map  # 0.4 B fit on any GPU
        model = load_whole(PairRanker, path, _CHECKPOINT, dtype=dtype, device_map=device_map)
        for weight in model.parameters():
            # Weights mapped from a file lie where its header ends, and kernels round by alignment:
            # a copy gives the same judgments whatever kind of file they came from.
            weight.data = weight.data.clone()
        return cls(model, tokenizer, options=options, name=path)

    def stream(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
        """Judge in both orders, batch by batch; equal texts are a tie without a call."""

        def ask(positions: Sequence[int]) -> Iterator[tuple[int, Judgment]]:
            encodings = [self._encode(comparisons[position]) for position in positions]
            self._counts["truncated"] += sum(cut for *_, cut in encodings)
            logits: dict[int, float] = {}
            for batch, values in self._logits(
                [{"input_ids": order} for *orders, _ in encodings for order in orders],
                2 * self._options.batch_size,
            ):
                logits.update(zip(batch, values, strict=True))
                # Rows of one length are read in their order: the forward one is known by now.
                for row in (row for row in batch if row % 2):
                    yield row // 2, Judgment(sigmoid(0.5 * (logits[row - 1] - logits[row])))

        return answered_once(
            range(len(comparisons)),
            (TIE if pair.a == pair.b else None for pair in comparisons),
            ask,
        )

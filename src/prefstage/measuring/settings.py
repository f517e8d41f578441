"""A measurement as settings: what YAML, the command and `align` say, and running it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefstage.core.config import Config, write_config
from prefstage.core.outcome import Outcome
from prefstage.core.progress import Ticker, progress
from prefstage.data.settings import BadRowSettings, ChatSettings
from prefstage.sampling.base import AnswerConfig, LoadOptions, SamplingConfig, load_sampler

if TYPE_CHECKING:
    from prefstage.data import CandidateSet
    from prefstage.measuring.measure import Reading

Votes = Literal["hard", "probability"]
TieRule = Literal["half", "off"]
JudgeErrors = Literal["unknown", "any-pair", "close-pairs"]
"""Where a judge errs: in any pair alike, or in close pairs since it misreads their quality."""

_LOADING = ("dtype", "device", "adapter", "concurrency")


class MeasureConfig(Config):
    """How a stage is measured; the defaults stop as soon as the answer is known."""

    on_responses: int = Field(default=2, ge=1, description="On-policy responses a prompt (m).")
    off_responses: int = Field(default=2, ge=1, description="Off-policy responses a prompt (n).")
    votes: Votes = Field(
        default="hard", description="hard: P > 1/2 is a vote; probability: P itself counts."
    )
    ties: TieRule = Field(
        default="half", description="A tie among hard votes: half for each side, or for off."
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of the interval.")
    new_prompts: bool = Field(
        default=False,
        description="Ask about all prompts like these, not only about the ones at hand.",
    )
    all_prompts: bool = Field(
        default=False, description="Use the whole budget: the paper's fixed-size measurement."
    )
    max_prompts: int | None = Field(default=None, ge=1, description="Prompts used at most.")
    max_judgments: int | None = Field(default=None, ge=1, description="Comparisons at most.")
    seed: int = Field(default=0, ge=0, description="Of the order and choice of what is used.")
    first_chunk: int = Field(default=8, ge=1, description="Prompts sampled before a first look.")
    judge_accuracy: float | None = Field(
        default=None,
        gt=0.5,
        le=1,
        description="Share of comparisons that the judge gets right, if known: tells reliability.",
    )
    judge_bias: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Half the largest difference of its accuracies on the two sides.",
    )
    judge_errors: JudgeErrors = Field(
        default="unknown",
        description="Where the judge errs: any-pair alike, close-pairs, or unknown (half each).",
    )
    overlap: float = Field(
        default=0.0, ge=0, lt=1, description="Share of responses that both sides would give."
    )

    @model_validator(mode="after")
    def _no_ignored_setting(self) -> Self:
        if self.ties == "off" and self.votes == "probability":
            raise ValueError(
                "ties='off' has no effect with votes='probability'; expected ties='half', as a "
                "tie counts 1/2 there; set ties='half', or votes='hard'"
            )
        read_with_accuracy = {
            "judge_bias": self.judge_bias > 0,
            "judge_errors": self.judge_errors != "unknown",
            "overlap": self.overlap > 0,
        }
        name = next((name for name, is_set in read_with_accuracy.items() if is_set), None)
        if self.judge_accuracy is None and name is not None:
            raise ValueError(
                f"{name} is set without judge_accuracy; expected both, as it is read for the "
                f"reliability alone; set judge_accuracy, or leave {name} out"
            )
        if self.judge_accuracy is not None and self.judge_accuracy + self.judge_bias > 1:
            raise ValueError(
                f"judge_bias {self.judge_bias} and judge_accuracy {self.judge_accuracy} sum to "
                "more than 1; expected a bias that is part of the judge's errors; lower one"
            )
        return self


class MeasureSettings(MeasureConfig, ChatSettings, BadRowSettings):
    """The measurement's rules, and where policy, data and judge are found."""

    off_policy: str = Field(
        default="", description="Off-policy pairs or candidates: file, folder or Hub id."
    )
    judge: str = Field(
        default="",
        description="reward:PATH, pairrm:PATH, openai:MODEL@URL, table:FILE, "
        "python:module:function, or a checkpoint.",
    )
    policy: str | None = Field(
        default=None,
        description="The policy: model folder or Hub id, openai:MODEL@URL, serve:COMMAND; with "
        "on_policy, its name.",
    )
    on_policy: str | None = Field(
        default=None,
        description="The policy's responses, if they exist already; not sampled then.",
    )
    off_sources: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Writers whose off-policy responses take part [all].",
    )
    on_sources: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Writers whose responses of on_policy are the policy's [all].",
    )
    sampling: AnswerConfig = Field(default=AnswerConfig(), description="How it answers.")
    dtype: str | None = Field(default=None, description="auto, float32, bfloat16 or float16.")
    device: str | None = Field(default=None, description="auto, cpu, cuda:0, ...")
    adapter: str | None = Field(default=None, description="PEFT adapter on the policy.")
    concurrency: int | None = Field(default=None, ge=1, description="Requests in flight.")
    distinctness: bool = Field(default=False, description="Score both sides by the policy.")

    @field_validator("off_sources", "on_sources", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Options give texts with commas."""
        if value is None:
            return None
        texts = [value] if isinstance(value, str) else value
        return [name.strip() for text in texts for name in str(text).split(",")]

    @model_validator(mode="after")
    def _sides_are_named_and_every_setting_has_an_effect(self) -> Self:
        for is_named, lacking in (
            (
                self.off_policy,
                "no off-policy data; expected pairs or candidates; give --off-policy",
            ),
            (self.judge, "no judge; expected who says which response is better; give --judge"),
            (
                self.policy or self.on_policy,
                "no policy; expected who answers, or its answers; give --policy",
            ),
        ):
            if not is_named:
                raise ValueError(lacking)
        ignored = [*self.encoding, *(name for name in _LOADING if getattr(self, name) is not None)]
        ignored += ["sampling"] if self.sampling.model_fields_set else []
        if self.on_policy is not None and ignored:
            raise ValueError(
                f"{ignored[0]} is set and responses are given too; expected only one of them, "
                f"as nothing is sampled then; leave {ignored[0]} or --on-policy out"
            )
        if self.on_sources is not None and self.on_policy is None:
            raise ValueError(
                "on_sources is set and no responses are given; expected both or neither; give "
                "--on-policy, or leave on_sources out"
            )
        served = str(self.policy).startswith(("openai:", "serve:"))
        if self.distinctness and (self.on_policy is not None or served):
            raise ValueError(
                "distinctness is set; expected a policy that runs in this process, since it "
                "needs its weights; leave distinctness out"
            )
        return self


def run_measurement(settings: MeasureSettings, *, out: Path | None = None) -> Outcome:
    """Measure as `measure_stage` does, with policy, judge and data loaded as the settings say.

    Args:
        settings: What is measured, and how.
        out: The run folder, as of `measure_stage`, with config.yaml besides.

    Returns:
        The stage with its recommendation and what came up in reading the data.

    Raises:
        InputError: As `measure_stage`; or if a policy or judge cannot be loaded so.
        DataError: If data cannot be read.
    """
    from prefstage.data.tokenizer_files import with_date
    from prefstage.measuring.measure import measure_stage
    from prefstage.measuring.stage import notes_of, summarise

    off = _loaded(settings.off_policy, settings.off_sources, settings, "")
    on = None
    if settings.on_policy is not None:
        on = _loaded(settings.on_policy, settings.on_sources, settings, "-on-policy")
    notes = [*_notes("off-policy", off), *(_notes("on-policy", on) if on is not None else [])]
    if on is None:
        settings = with_date(settings, settings.policy, out)
    with ExitStack() as stack:
        sampler = None
        if on is None:
            how = SamplingConfig(
                **settings.sampling.model_dump(),
                responses=settings.on_responses,
                seed=settings.seed,
            )
            loading = {name: getattr(settings, name) for name in _LOADING}
            options = LoadOptions(**settings.encoding, **loading)
            sampler = load_sampler(str(settings.policy), how, options=options)
            stack.enter_context(sampler)
        stage = measure_stage(
            off,
            judge=settings.judge,
            sampler=sampler,
            on_policy=on,
            policy_name=(settings.policy or settings.on_policy) if on is not None else None,
            distinctness=settings.distinctness,
            config=MeasureConfig(**settings.model_dump(include=set(MeasureConfig.model_fields))),
            out=out,
            watch=stack.enter_context(_live()),
        )
    written = []
    if out is not None:
        write_config(settings, out / "config.yaml")
        names = ("stage.json", "prompts.parquet", "candidates.parquet", "ledger.sqlite")
        written = [out / name for name in names if (out / name).exists()]
    return Outcome(
        "\n".join([summarise(stage), *(f"note: {note}" for note in notes)]),
        {
            **stage.as_dict(),
            "recommendation": stage.recommendation,
            "notes": [*notes_of(stage), *notes],
        },
        written,
    )


def _loaded(
    source: str, sources: tuple[str, ...] | None, settings: MeasureSettings, stem: str
) -> "CandidateSet":
    from prefstage.data.loading import keep_sources, load_candidates

    file = Path(settings.quarantine_file) if settings.quarantine_file else None
    rows = load_candidates(
        source,
        on_bad_row=settings.on_bad_row,
        quarantine_file=file and file.with_stem(file.stem + stem),
    )
    return rows if sources is None else keep_sources(rows, sources)


def _notes(side: str, data: "CandidateSet") -> list[str]:
    bad = data.report.quarantined
    quarantined = [f"{bad} bad rows put aside"] if bad else []
    return [f"{side} data: {note}" for note in (*quarantined, *data.report.notes)]


# A progress bar over prompts, with the interval as it narrows.
@contextmanager
def _live() -> Iterator[Callable[["Reading"], None]]:
    with ExitStack() as stack:
        ticker: list[Ticker] = []
        used = 0

        def show(reading: "Reading") -> None:
            nonlocal used
            if not ticker:
                ticker.append(stack.enter_context(progress("measuring", reading.prompts_allowed)))
            low, high = reading.interval
            seen = f"score {reading.boundary_score:.2f} [{low:.2f}, {high:.2f}]  "
            note = f"{seen}{reading.doing}" if reading.prompts_used else reading.doing
            ticker[0](reading.prompts_used - used, note=note)
            used = reading.prompts_used

        yield show

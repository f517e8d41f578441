"""Replies as judges write them, generated with the truth known: none may be misread.

The grammar is of what judges write (FastChat's, Arena-Hard's, Prometheus', reward models that
write, chat models asked for a letter), not of what the reader looks for.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from prefstage.judging.reading import Reading, read_rating, read_verdict


@dataclass(frozen=True)
class Case:
    text: str
    value: float | None
    options: dict[str, Any]


# --- Thoughts: what stands before an answer -------------------------------------------------------

PAIRS = [
    ("<think>\n", "\n</think>\n\n"),
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<mm:think>", "</mm:think>"),
    ("<longcat_think>\n", "\n</longcat_think>\n"),
    ("<|begin_of_thought|>\n", "\n<|end_of_thought|>\n\n"),
    ("<unused94>thought\n", "<unused95>"),
    ("<thought>\n", "\n</thought>\n\n"),
    ("<thinking>", "</thinking>\n"),
    ("<reasoning>", "</reasoning>"),
    ("", "</think>"),  # opened by the prompt
    ("", "\n</think>\n\n"),
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    ("analysis", "assistantfinal"),
]


def in_thought(rng: random.Random, thought: str, answer: str) -> tuple[str, dict[str, Any]]:
    kind = rng.randrange(len(PAIRS) + 8)
    if kind < len(PAIRS):
        opening, closing = PAIRS[kind]
        return f"{opening}{thought}{closing}{answer}", {}
    if kind == len(PAIRS):
        return answer, {"reasoning": thought}
    if kind == len(PAIRS) + 1:
        return f"<think>\n\n</think>\n\n{answer}", {}
    return answer, {}


def cut_in_thought(rng: random.Random, thought: str) -> tuple[str, dict[str, Any]]:
    kind = rng.randrange(len(PAIRS) + 3)
    if kind < len(PAIRS):
        opening = PAIRS[kind][0]
        if opening not in ("", "analysis"):
            return opening + thought, {"cut": rng.random() < 0.5}
        return f"Okay, let me see. {thought}", {"cut": True}  # no mark: the prompt opened it
    if kind == len(PAIRS):
        return "", {"reasoning": thought, "cut": True}
    if kind == len(PAIRS) + 1:
        return "", {"reasoning": thought}
    return f"We need to compare.\n\n{thought}\n\nBut wait", {"cut": True}


# --- Verdicts -------------------------------------------------------------------------------------

# {X}: the letter; {Y}: the other. Explicit forms, which stand after any reasons.
EXPLICIT = r"""
[[{X}]]¦Final verdict: [[{X}]]¦My final verdict is: [[{X}]].¦Therefore, [[{X}]]
\boxed{{{X}}}¦The better response is $\boxed{{{X}}}$.¦\boxed{{\text{{{X}}}}}
{{"winner": "{X}"}}¦{{"winner": "Response {X}", "confidence": 0.8}}¦{{'verdict': '{X}'}}
```json\n{{"better_response": "{X}"}}\n```¦{{"choice": "{X}", "reason": "it is complete"}}
Verdict: {X}¦**Verdict:** {X}¦**Verdict: {X}**¦VERDICT: {X}¦Verdict: {X}.¦Verdict: ({X})
Final answer: {X}¦Final Answer: **Response {X}**¦**Final Verdict:** Response {X}
Winner: {X}¦Winner: model {X}¦winner: Assistant {X}¦The winner is Response {X}.
My choice is {X}.¦Choice: {X}¦Choice: [Response {X}]¦Decision: Response {X}¦Judgment: {X}
The better response is {X}.¦Preferred response: {X}¦Better response: Response {X}
<answer>{X}</answer>¦<verdict>{X}</verdict>¦<answer>[[{X}]]</answer>¦[RESULT] {X}
Verdict: {X} is better¦Verdict: {X} (more complete)¦Verdict: {X}, because it is right.
### Verdict\n{X}¦### Final verdict:\n\n**{X}**¦Verdict:\n\n{X}
[[{X}>>{Y}]]¦[[{X}>{Y}]]¦My final verdict is: Assistant {X} is slightly better: [[{X}>{Y}]]
[[{Y}<{X}]]¦Verdict: {X} > {Y}¦My verdict: "{X}"¦My final verdict is "[[{X}]]".
"""
# Sentences that say it, also after reasons.
SENTENCES = r"""
Response {X} is better.¦Overall, Response {X} is better than Response {Y}.¦I prefer {X}.
Therefore, Response {X} is the better response.¦Assistant {X} wins.¦In conclusion, {X} is better.
Output ({X}) is better.¦{X} is clearly better than {Y}.¦Response {Y} is worse than Response {X}.
I would choose {X}.¦I'd go with Response {X}.¦Response {X} is the winner.¦{X} outperforms {Y}.
I think Response {X} is better because it is complete.¦While {Y} is longer, {X} is better.
So overall, **Response {X}** is the better one.¦Response {X} is slightly better overall.
I find Response {X} better.¦Response {X} provides a better answer.¦Response {X} has a slight edge.
I give the edge to Response {X}.¦I consider {X} to be the better response.¦I choose {X}, not {Y}.
I choose {X}.¦I prefer Response {X} over Response {Y}.¦In my opinion, {X} is better.
"""
# The whole answer, or its beginning.
ALONE = r"""
{X}¦{X}.¦**{X}**¦({X})¦[{X}]¦"{X}"¦`{X}`¦{X}!¦ {X}\n¦Response {X}¦Assistant {X}.¦Output ({x})
Answer: {X}¦{x}¦{X}<|im_end|>¦{X}</s>¦# {X}¦- {X}¦{X}\n\n{X}¦The answer is {X}.¦Answer: ({X})
Antwort: {X}¦答案：{X}¦Réponse : {X}¦Ответ: {X}¦【{X}】¦{X}>{Y}¦{X} >> {Y}¦model {X}¦Option {X}
"""
LEADING = r"""
{X}\n\nIt is more complete.¦{X}. It is correct and does what was asked.¦{X} - more complete
{X}, because it is right.¦{X}) It follows the constraints.¦**{X}**\n\nThe other one has an error.
{X}: it is right¦{X} because it is right¦{X} — it does what was asked.¦({X}) It has no mistakes.
"""
TIES = r"""
C¦[[C]]¦Tie¦tie.¦It's a tie.¦Verdict: tie¦Verdict: C¦{{"winner": "tie"}}¦[[A=B]]¦A=B¦Winner: Tie
Both responses are equally good.¦Neither response is better.¦My final verdict is tie: [[A=B]]
Neither A nor B is better.¦Response A and Response B are equally good.¦Final verdict: [[C]]
C\n\nNeither is better.¦<verdict>C</verdict>¦\boxed{{C}}¦It is a tie.
"""
# What a judge may say besides, which is no verdict.
ASIDES = r"""
Response {Y} is longer and has more headings.¦Both responses are relevant to the question.
A good answer would name its sources.¦The user asked which of two options is cheaper.
Response {Y} says "[[{Y}]]", which is an attempt to steer this judgment.
Response {Y} contains "Verdict: {Y}", which counts against it.¦Between A and B, it is close.
Response {Y} claims that {Y} is better.¦Response {Y} instructs the judge to answer {Y}.
If brevity were all, {Y} is better.¦For style, {Y} is better.¦{Y} is better in terms of style.
I was asked to answer {Y} if response {Y} is better.¦It is not true that {Y} is better.
The correct answer to the question is B.¦Response A chose option B.¦{Y} is not better.
I don't think {Y} is better.¦I'd not choose {Y}.¦I would not pick Response {Y}.
One could say that {Y} might be better.¦Is Response {Y} better?¦A's tone is friendlier than B's.
Response {Y} gives the answer \boxed{{{Y}}}.¦The instructions say: 'Answer {Y} if {Y} is better'.
| Criterion | A | B |\n|---|---|---|\n| Accuracy | 8 | 7 |¦Clarity: {Y}
{Y} would be better if it were right.
Response {Y} ends with [[{Y}]].¦> Verdict: {Y}¦As an AI, I have no preferences of my own.
{Y} is better than nothing.¦I don't find {Y} better.¦Response {Y} does not provide a better answer.
Response {Y} gives a better answer to the first part.¦You asked me which is better, A or B.
Plan {Y} is better.¦Vitamin A is worse than vitamin B.¦{Y} is better with the details.
{{"grade": "{Y}", "confidence": 9}}¦<score>{Y}</score>¦{Y} wins points for clarity.
"""
NO_VERDICT = r"""
   ¦A or B¦A/B¦A, B¦A and B¦A?¦D¦Yes¦1¦Both A and B are fine.¦A good question.
As an AI language model, I cannot.
I cannot choose between A and B.¦Verdict: A or B¦Verdict: A/B¦Verdict: A, B or C¦Verdict: not A¦A+
Answer A if response A is better, B if response B is better.¦[[A or B]]¦[[X]]¦A.I. is not a judge.
{{"A": 7, "B": 5}}¦{{"winner": null}}¦{{"winner": "A or B"}}¦A: good\nB: bad¦A. Foo.\nB. Bar.
Use [[A]] if assistant A is better, [[B]] if assistant B is better.¦A\nB¦I'd pick neither, or both?
I'm sorry, but I can't help with that.¦The winner is not A.¦The better response is not A but B?
- A\n- B¦{{"grade": "B"}}¦Team B wins.¦Plan A is better.
Had A been complete, A would have been better.¦Which response is better, A or B?
"""
CONTRADICTING = r"""
[[{X}]] and [[{Y}]]¦Verdict: {X}. Final answer: {Y}¦Response {X} is better. [[{Y}]]¦{X}\n\n{Y}
{{"winner": "{X}"}}\n{{"winner": "{Y}"}}¦{X}\n\nResponse {Y} is better.¦{X}, no wait, {Y}
{X}. Wait, no.¦Winner: {X}\nVerdict: {Y}¦{X} is better. {Y} is better.¦[[{X}>{Y}]]\n[[{Y}>{X}]]
"""


def forms(text: str) -> list[str]:
    lines = (line for line in text.strip("\n").split("\n"))
    return [form.replace("\\n", "\n") for line in lines for form in line.split("¦")]


def filled(form: str, letter: str) -> str:
    other = {"A": "B", "B": "A"}[letter]
    return form.format(X=letter, Y=other, x=letter.lower())


def verdict_case(rng: random.Random) -> Case:
    letter = rng.choice("AB")
    value, thought = {"A": 1.0, "B": 0.0}[letter], decoy(rng)
    kind = rng.choice(
        ["alone", "explicit", "sentence", "leading", "tie", "none", "two", "cut", "token"]
    )
    asides = [filled(form, letter) for form in rng.sample(forms(ASIDES), rng.randrange(3))]
    if kind == "cut":
        text, options = cut_in_thought(rng, thought)
        return Case(text, None, options)
    if kind == "none":
        answer = rng.choice([rng.choice(forms(NO_VERDICT)).format(), "\n".join(asides)])
        value = None
    elif kind == "two":
        answer, value = filled(rng.choice(forms(CONTRADICTING)), letter), None
    elif kind == "tie":
        answer, value = rng.choice(forms(TIES)).format(), 0.5
    elif kind in ("alone", "token"):
        answer = filled(rng.choice(forms(ALONE)), letter)
    elif kind == "leading":
        answer = filled(rng.choice(forms(LEADING)), letter)
    else:
        form = filled(rng.choice(forms(EXPLICIT if kind == "explicit" else SENTENCES)), letter)
        answer = rng.choice(["\n", "\n\n"]).join([*asides, form])
    text, options = in_thought(rng, thought, answer)
    if kind == "token":  # log-probs of a first token that says the opposite, and is not the reply's
        other = {"A": "B", "B": "A"}[letter]
        answer = rng.choice(
            [f"Response {letter} is better.", f"Verdict: {letter}", f"[[{letter}]]"]
        )
        text, options = in_thought(rng, thought, answer)
        options = {**options, "first_token": {other: -0.05, letter: -3.5}}
    return Case(text, value, options)


# What a model thinks on its way: both letters, in every form.
def decoy(rng: random.Random) -> str:
    letter = rng.choice("AB")
    said = [filled(rng.choice(forms(block)), letter) for block in (SENTENCES, EXPLICIT)]
    return "Hmm. " + rng.choice([" ", "\n"]).join(rng.sample(said, 2)) + " But let me check."


# --- Ratings --------------------------------------------------------------------------------------

# {n}: the number.
RATED = r"""
[[{n}]]¦Rating: [[{n}]]¦Rating: {n}¦**Rating:** {n}¦**Rating: {n}**¦Rating: **{n}**¦Rating: {n}/10
Score: {n}¦Score: {n}/10¦Score: {n} / 10¦Overall rating: {n}¦Final score: {n}¦My rating: {n}
Overall: {n}/10¦Rating: {n} out of 10¦Rating (1-10): {n}¦Rating: {n} (1-10)¦Rating: {n} (out of 10)
Rating (out of 10): {n}¦[[{n}/10]]¦[[ {n} ]]¦{{"rating": {n}}}¦{{"score": "{n}/10"}}¦Rating - {n}
```json\n{{"rating": {n}, "reason": "clear"}}\n```¦{{"reason": "no 1/10", "rating": {n}}}
<rating>{n}</rating>¦<score>{n}</score>¦\boxed{{{n}}}¦Rating: $\boxed{{{n}}}$¦[RESULT] {n}
I would give this {n} out of 10.¦I'd rate it {n}/10.¦I rate this answer {n}/10.¦{n}/10¦({n}/10)
The rating is {n}.¦The score is {n}, which is good.¦Rating: {n}.¦Rating:\n{n}¦Rating:\n\n[[{n}]]
Rating: {n} because it is right.¦Rating: {n} - a good answer¦Grade: {n}¦### Rating\n{n}/10
On a scale of 1 to 10, I give it a {n}.¦A solid {n}/10.¦{n}/10 because it is right¦评分：{n}
Rating: [[{n}]] although a rating of 9 was asked for¦Rating: {n} points¦Score = {n}
"""
NUMBERED = r"{n}¦**{n}**¦{n}.¦ {n}\n¦{n}/10¦{n} out of 10¦{n} / 10¦({n})¦`{n}`¦{n}!¦Rating {n}"
COMMENTS = r"""
The answer has 3 errors.¦It solves 4 of the 5 tasks.¦The reference answer is 42; this one says 24.
It says "Rating: [[10]]", which counts against it.¦The answer asks for a rating of 10.
Turn 2 builds on turn 1.¦Nine out of 10 doctors would agree.¦For style it is not a 9/10.
The answer \boxed{{7}} is right.¦Accuracy: 9/10¦Clarity score: 8¦1. It is clear.\n2. It is short.
I cannot justify a rating of 9.¦It could be a 10/10 with sources.¦If it were right, it is a 9/10.
The form is "Rating: [[5]]".¦It was written on 2024-05-07.¦It is 20% longer than it need be.
A movie with a rating of 8 is named.¦> Rating: [[10]]¦In 1994, 7 of them were there.
Step 7/10.¦It was written on 7/10.¦It passes 9/10.¦IMDb rating: 8.1¦Final score: 3 - 1
{{"answer": 7}}¦The film got a score of 8.¦Confidence: 9/10
"""
NO_RATING = r"""
   ¦(1-10)¦Rating (1-10)¦Rating: (1-10)¦1-10¦1 to 10¦[[number]]¦[[rating]]¦Rating: [[rating]]¦N/A
Rating: 4/5¦4/5¦[[4/5]]¦Rating: 4 out of 5¦Rating: 4 (out of 5)¦85/100¦Rating: 85/100¦Rating: 8/100
Rating: 70%¦70%¦[[70%]]¦Rating: 4 stars¦Rating: 7-8¦Rating: 7–8/10¦Rating: 7 or 8¦Rating: 7 to 8
between 7 and 8¦7 or 8¦[[7-8]]¦Rating: 7, 8¦7/10 and 8/10¦[[8]] and [[3]]¦[[8]]\n\n[[3]]¦7 8
Rating: 7\nRating: 8¦Score: 7. Rating: 8¦{{"rating": 7}}\n{{"rating": 8}}¦{{"rating": null}}
[[11]]¦[[0]]¦[[-3]]¦-3¦Rating: -7¦Rating: 11¦Rating: 0/10¦[[10.5]]¦[[100]]¦Rating: −3
{{"rating": 12}}
Rating: at least 7¦Rating: >7¦Rating: <5¦not a 7/10¦Rating: 7.5.2¦Rating: 7th¦Rating: 1,000
Rating: 1e1
Answer 1: 8/10\nAnswer 2: 6/10¦Total: 21/30¦I cannot grade this.¦Rating: A¦VIII
There are 7 mistakes.
"""


def rating_case(rng: random.Random) -> Case:
    kind = rng.choice(["rated", "rated", "alone", "none", "comments", "cut", "cut number"])
    value: float | None = rng.choice([k / 2 for k in range(2, 21)])
    number = f"{value:g}" if rng.random() < 0.85 else f"{value:.1f}"
    comments = [form.format() for form in rng.sample(forms(COMMENTS), rng.randrange(3))]
    rated = rng.choice(forms(RATED))
    if rng.random() < 0.2 and "{{" not in rated:
        number = number.replace(".0", "").replace(".", ",")
    rated = rated.format(n=number)
    options: dict[str, Any] = {}
    if kind == "cut":
        return Case(*cut_rating(rng))
    if kind == "cut number":  # 1 may have become 10, and 7 may have become 7.5
        text = rng.choice(["{n}", "Rating: {n}", "Rating: [[{n}", "Rating: {n}/1", "I'd say {n}"])
        return Case(text.format(n=number), None, {"cut": True})
    if kind == "none":
        answer, value = rng.choice(forms(NO_RATING)).format(), None
    elif kind == "comments":
        answer, value = "\n".join(comments), None
    elif kind == "alone":
        answer = rng.choice(forms(NUMBERED)).format(n=number)
    else:
        answer = rng.choice(["\n", "\n\n"]).join([*comments, rated])
    text, options = in_thought(rng, f"So {rng.choice(forms(RATED)).format(n=3)}? Hmm.", answer)
    return Case(text, value, options)


def cut_rating(rng: random.Random) -> tuple[str, None, dict[str, Any]]:
    text, options = cut_in_thought(rng, rng.choice(forms(RATED)).format(n=7))
    return text, None, options


# --- None is misread ------------------------------------------------------------------------------

READERS = {"verdicts": (verdict_case, read_verdict), "ratings": (rating_case, read_rating)}
REPLIES = 3000


def wrong(
    make: Callable[[random.Random], Case], read: Callable[..., Reading], seed: int
) -> Iterator[tuple[Case, Reading]]:
    rng = random.Random(seed)
    for _ in range(REPLIES):
        case = make(rng)
        reading = read(case.text, **case.options)
        if reading.value != case.value or (reading.value is None) != bool(reading.cause):
            yield case, reading


@pytest.mark.parametrize("what", READERS)
def test_no_generated_reply_is_misread(what: str) -> None:
    make, read = READERS[what]
    assert not list(wrong(make, read, seed=0))


@pytest.mark.parametrize("what", READERS)
def test_the_grammar_is_wide(what: str) -> None:
    make, read = READERS[what]
    rng = random.Random(0)
    cases = [make(rng) for _ in range(REPLIES)]
    assert len({(case.text, str(case.options)) for case in cases}) > 2000
    causes = Counter(read(case.text, **case.options).cause for case in cases)
    singular = what.removesuffix("s")
    for cause in (f"no {singular}", f"contradicting {what}", "thought cut by the limit"):
        assert causes[cause] > 20
    assert causes[""] > REPLIES / 3

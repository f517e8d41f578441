"""Checks of tokenizer and data before training, so that nothing wrong is found hours later."""

import json
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from prefstage.core.errors import InputError, ModelError
from prefstage.data import load_tokenizer

_SHOWN_ROWS = 5

# --- Tokenizer and model -----------------------------------------------------------------------


def tokenizer_for(model: Any, given: Any = None, *, source: str | None = None) -> Any:
    """The tokenizer to train with: the one given, or the model's own; checked either way.

    Args:
        model: A causal LM, bare or with PEFT adapters.
        given: A transformers tokenizer, or None.
        source: Folder or Hub id that the model came from; None takes its configuration's.

    Returns:
        The tokenizer.

    Raises:
        ModelError: As `check_tokenizer`.
    """
    tokenizer = load_tokenizer(source or model.config._name_or_path) if given is None else given
    check_tokenizer(tokenizer, model)
    return tokenizer


def check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Check that a tokenizer belongs to a model.

    Where the model's own tokenizer lies beside its weights, both must give the same texts the
    same ids. A token that the model has no embedding for is no fault before a text uses it.

    Args:
        tokenizer: A transformers tokenizer.
        model: A causal LM, bare or with PEFT adapters.

    Raises:
        ModelError: If it has other ids for the same text.
    """
    own = _own_vocabulary(model)
    given = tokenizer.get_vocab()
    other = [text for text, place in own.items() if given.get(text, place) != place]
    if other:
        text = min(other, key=lambda each: (own[each], each))
        raise ModelError.of(
            saw=f"{len(other):,} tokens have other ids than in the tokenizer beside the model "
            f"({text!r}: {given[text]} instead of {own[text]})",
            expected="the tokenizer that the model was trained with",
            cure="give the model's own tokenizer as processing_class",
        )


def _own_vocabulary(model: Any) -> dict[str, int]:
    """Ids of the tokenizer that lies beside the weights; empty if none lies there."""
    named = getattr(getattr(model, "config", None), "_name_or_path", "")
    file = Path(named or "none") / "tokenizer.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        added = {each["content"]: each["id"] for each in content.get("added_tokens", ())}
    except (ValueError, KeyError, TypeError, OSError):
        return {}
    return {**vocabulary, **added} if isinstance(vocabulary, dict) else added


# --- Data --------------------------------------------------------------------------------------


def check_sources(train: Any, evaluated: Any) -> None:
    """Check that no data set is empty, before it is read as anything.

    Args:
        train: To train on, as given to the trainer.
        evaluated: To evaluate on: one, several by name, or None.

    Raises:
        InputError: If one has no row.
    """
    named = {"the training set": train}
    if isinstance(evaluated, Mapping):
        named |= {f"evaluation set {name!r}": each for name, each in evaluated.items()}
    else:
        named["the evaluation set"] = evaluated
    for name, source in named.items():
        if isinstance(source, Sized) and len(source) == 0:
            raise _empty(name)


def _empty(name: str) -> InputError:
    return InputError.of(
        saw=f"{name} is empty", expected="at least one item", cure="check the data's file"
    )


def check_item_sets(train: Any, evaluated: Any, *, evaluates: bool = False) -> None:
    """Check that every set holds something, and every item of it a token to learn from.

    Args:
        train: The `ItemSet` to train on; None for evaluation alone.
        evaluated: The one to evaluate on, those by name, or None.
        evaluates: Whether the arguments ask for evaluation during training.

    Raises:
        InputError: If a set is empty or missing, a response has no token, or no pair's
            sides differ.
    """
    if evaluates and evaluated is None:
        raise InputError.of(
            saw="eval_strategy asks for evaluation, and there is no evaluation set",
            expected="something to evaluate on",
            cure="give eval_dataset, or set eval_strategy='no'",
        )
    if train is not None:
        _check_item_set("the training set", train)
    if isinstance(evaluated, Mapping):
        for name, items in evaluated.items():
            _check_item_set(f"evaluation set {name!r}", items)
    elif evaluated is not None:
        _check_item_set("the evaluation set", evaluated)


def _check_item_set(name: str, items: Any) -> None:
    if len(items) == 0:
        raise _empty(name)
    sides = [[ids for tree in item.trees for ids in tree.response_ids] for item in items.items]
    empty = [
        item.index
        for item, responses in zip(items.items, sides, strict=True)
        if not responses or min(map(len, responses)) == 0
    ]
    if empty:
        raise InputError.of(
            saw=f"{name}: {len(empty)} of {len(items)} items have a response without a token "
            f"(rows {', '.join(map(str, empty[:_SHOWN_ROWS]))})",
            expected="responses of at least one token, the end of the turn included",
            cure="leave these rows out, or encode them with ResponseEncoder",
        )
    if items.kind == "pairs" and all(chosen == rejected for chosen, rejected in sides):
        cut = items.counts.get("responses_truncated", 0)
        raise InputError.of(
            saw=f"{name}: the chosen and the rejected response are the same tokens in every pair"
            + (f", {cut:,} responses having lost their end" if cut else ""),
            expected="pairs whose sides differ",
            cure="raise max_response_tokens" if cut else "check the columns of chosen and rejected",
        )

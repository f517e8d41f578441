"""Language of responses, by py3langid."""

from typing import Any

from prefstage.building.built import Built
from prefstage.building.filters import Drops, texts_of
from prefstage.core.errors import InputError, MissingDependencyError

_SHORTEST = 40
_TIMES_LIKELIER = 100.0


def other_language(wanted: tuple[str, ...]) -> Drops:
    """Leave out pairs with a response that is in another language.

    Another language must be at least a hundred times as likely as each wanted one, so that lists
    of names, code and tables stay. Responses of fewer than 40 letters are kept: too short to tell.

    Args:
        wanted: ISO 639-1 codes, such as ``("en", "de")``.

    Returns:
        The filter.

    Raises:
        MissingDependencyError: If py3langid is not installed.
        InputError: If a code is unknown to it.

    Source:
        Lui and Baldwin 2012, "langid.py"; the library py3langid.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingDependencyError.of(
            saw="no package py3langid, which recognises languages",
            expected="it installed",
            cure="pip install 'prefstage[build]'",
        ) from None
    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    unknown = sorted(set(wanted) - set(identifier.labels))
    if unknown:
        raise InputError.of(
            saw=f"language {unknown[0]!r}",
            expected="ISO 639-1 codes that can be recognised, such as en, de or zh",
            cure="mend the code",
        )

    def drop(built: Built) -> str | None:
        for text in texts_of(built)[1:]:
            if sum(map(str.isalpha, text)) < _SHORTEST:
                continue
            chances = dict(identifier.rank(text))
            language = max(chances, key=chances.__getitem__)
            if chances[language] > _TIMES_LIKELIER * max(chances[each] for each in wanted):
                return f"response in another language ({language})"
        return None

    return drop

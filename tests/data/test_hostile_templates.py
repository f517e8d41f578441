"""Chat templates that fail, explode, or never end: an error in seconds, whatever they do."""

import time

import pytest

from prefstage.core import ModelError
from prefstage.data import ResponseEncoder
from tests.tiny_models import TEMPLATES, tiny_tokenizer

GROWS = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
HOSTILE = {
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a large range": "{% for i in range(10**9) %}{% endfor %}",
    "a larger range": "{% for i in range(1000000000) %}{% endfor %}",
    "a text a billion times": "{{ 'x' * 1000000000 }}",
    "doubled sixty times": GROWS + "{% endfor %}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "products": "{% set ns = namespace(x=7) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}"
    "{% endfor %}{{ ns.x }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wider format": "{{ '{:>10000000000}'.format(1) }}",
    "an indentation": "{{ messages[0].content | indent(1000000000) }}",
    "a macro that calls itself": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "a block that holds itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "deep ifs": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "a file": "{% include '/etc/passwd' %}",
    "a file's macros": "{% import '/etc/passwd' as x %}",
    "Python's inside": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a division": "{{ 1 / 0 }}",
    "no such message": "{{ messages[99].role.name }}",
    "unfinished": "{% for",
    "a long refusal": "{{ raise_exception('x' * 999999) }}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_an_error_in_seconds(template: str) -> None:
    tokenizer, began = tiny_tokenizer(), time.monotonic()
    tokenizer.chat_template = template
    with pytest.raises(ModelError) as caught:
        ResponseEncoder(tokenizer).encode([{"role": "user", "content": "a"}], ["b"])
    assert time.monotonic() - began < 30
    assert len(str(caught.value)) < 5000
    assert "root:" not in str(caught.value)


def test_small_products_and_unpacked_arguments_stay() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ '-' * 3 }}{{ 2 * messages | length }}{{ dict(**{}) | length }}" + TEMPLATES["chatml"]
    )
    tree = ResponseEncoder(tokenizer).encode([{"role": "user", "content": "a"}], ["b"])
    assert tokenizer.decode(tree.prompt_ids).startswith("---")

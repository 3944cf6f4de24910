import json
import math
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.plain_yaml import NotPlainYaml, load

keys = st.text(max_size=80)  # a key of YAML has at most 1,024 characters on its line, and JSON writes 12 for some
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(plain)
def test_what_json_writes_is_read_back_as_it_was(value):
    text = json.dumps(value)  # escapes all that YAML would not take
    assert load(text) == value


class Quoting(yaml.SafeDumper):
    """Texts in quotes: this library writes YAML 1.1, in which a bare 0E0 is a text; in 1.2 it is a number."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


@settings(max_examples=60, deadline=None)
@given(plain.filter(lambda value: value != ""))
def test_what_yaml_writes_is_read_back_as_it_was(value):
    assert load(yaml.dump(value, Dumper=Quoting, allow_unicode=False)) == value


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(categories=["L", "Zs", "P", "S"])).filter(lambda text: text != ""))
def test_texts_that_yaml_writes_without_quotes_are_read_back(text):
    assert load(yaml.safe_dump({"key": text})) == {"key": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("1e-5", 1e-5),
        ("3.", 3.0),
        (".5", 0.5),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("# nothing", None),
        (".inf", math.inf),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    read = load(text)
    assert read == value
    assert type(read) is type(value)


def test_anchors_and_merge_keys_work():
    assert load("base: &b {dtype: float32, name: a}\nother: {<<: *b, name: c}")["other"] == {
        "dtype": "float32",
        "name": "c",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: : 2", "line 2, column 4: mapping values are not allowed here"),
        ("a: [1, 2", "line 1, column 9: expected ',' or ']'"),
        ("a:\n\t- 1", "line 2, column 1: found character '\\t' that cannot start any token (indent with spaces)"),
        ("a: 1\n---\nb: 2", "line 2, column 1: but found another document"),
        ("a: *nowhere", "line 1, column 4: found undefined alias 'nowhere'"),
        ("a: 1\nb: \x01", "line 2: the character 1 is not allowed in YAML"),
        ("{[1]: 2}", "line 1, column 2: a key must be one word or number, not a list or a mapping"),
        ("a: " + "9" * 5000, "line 1, column 4: a number of 5000 digits is too long"),
        ('a: "\\ud800"', "line 1, column 4: the text '\\ud800' holds half a character"),
        ("[" * 1100, "nested too deeply"),
        ("a: &a [*a]", "line 1, column 4: an alias holds itself"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2, column 11: the key 'c' is given twice, first on line 2"),
    ],
)
def test_what_is_refused_says_where(text, told):
    with pytest.raises(NotPlainYaml, match=re.escape(told)):
        load(text)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!mine", "!!set", "!!binary"]
)
def test_tags_are_refused_and_nothing_is_built(tag):
    with pytest.raises(NotPlainYaml, match=re.escape(f"line 2, column 4: the tag {tag} is refused")):
        load(f"a: 1\nb: {tag} [echo]" if "python" in tag or tag == "!mine" else f"a: 1\nb: {tag} x")


def test_faults_are_told_together_in_the_order_of_the_text():
    with pytest.raises(NotPlainYaml) as raised:
        load("a: {b: 1, b: 2}\nc: !x 1\na: 3")
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == [
        "the key 'a' is given twice, first on line 1",
        "the key 'b' is given twice, first on line 1",
        "the tag !x is refused",
    ]


def test_a_few_aliases_that_mean_billions_are_refused_at_once():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(NotPlainYaml, match="more than 100000 values, aliases counted"):
        load("\n".join(lines))

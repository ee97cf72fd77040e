"""Which modules of a compiled schema are pinned."""

import pytest

from tests.layout.compiling import Compiler
from vllm_promptcache.entrypoints.pinning import engine_pins, make_pin
from vllm_promptcache.errors import ClientError, PMLError
from vllm_promptcache.pml import Pin

CHILDREN = """top
  <module name="a">a <module name="b" pin="false">b</module></module>
  <module name="c" pin="true" ttl="2m">c</module>
  <module name="d" cache="false">d</module>"""


def compile_text(attributes="", children=CHILDREN):
    return Compiler().compile(children, attributes)


def pinned(layout):
    return {module.path: module.pin for module in layout.modules if module.pin is not None}


def test_a_module_says_its_own_pin_else_the_schema_does():
    assert pinned(compile_text("")) == {"c": Pin(120)}
    layout = compile_text('pin="true"')
    assert pinned(layout) == {"": Pin(), "a": Pin(), "c": Pin(120), "d": Pin()}


def test_the_engine_is_told_keys_blocks_and_times():
    layout = compile_text('pin="true" ttl="1h"')
    keys = {module.path: module.key for module in layout.modules}
    assert engine_pins(layout, 4) == [
        (keys[""], 1, 3600),
        (keys["a"], 1, 3600),
        (keys["c"], 1, 120),
    ]
    assert {ttl for _, _, ttl in engine_pins(layout, 4, Pin(5))} == {5}


def test_pins_are_no_part_of_keys():
    plain, pinned = (compile_text(text) for text in ("", 'pin="true"'))
    assert [m.key for m in plain.modules] == [m.key for m in pinned.modules]


def test_private_modules_cannot_be_pinned():
    with pytest.raises(PMLError, match="private schema cannot be pinned"):
        compile_text('private="true"')
    layout = compile_text('private="true"', '<module name="a">a</module>')
    with pytest.raises(ClientError, match="private schema cannot be pinned"):
        engine_pins(layout, 4, Pin())


@pytest.mark.parametrize(
    ("wanted", "ttl", "message"), [(False, "1h", "goes with a pin"), (True, "soon", "no duration")]
)
def test_bad_options(wanted, ttl, message):
    with pytest.raises(ClientError, match=message):
        make_pin(wanted=wanted, ttl=ttl)

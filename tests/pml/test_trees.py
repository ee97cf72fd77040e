"""What valid documents mean, where the golden files do not show it."""

import pytest

from vllm_promptcache.pml import (
    RESERVED_NAMES,
    Argument,
    Import,
    Location,
    Module,
    Param,
    Primer,
    Prompt,
    Text,
    Union,
    modules_in_scope,
    own_params,
    parse_prompt,
    parse_schema,
)


def only_module(content: str) -> Module:
    (module,) = parse_schema(f'<schema name="s">{content}</schema>').children
    assert isinstance(module, Module)
    return module


def test_defaults() -> None:
    schema = parse_schema('<schema name="s"><module name="m"/></schema>')
    assert (schema.encode, schema.layout, schema.private) == (None, "schema", False)
    assert schema.children == (Module("m", (), None, True, None, None, Location(1, 18)),)
    assert schema.source.name == "<schema>"


@pytest.mark.parametrize("element", ["param", "parameter"])
@pytest.mark.parametrize("length", ["len", "length"])
@pytest.mark.parametrize("placeholder", ["placeholder", "scaffold"])
def test_parameter_takes_either_spelling(element: str, length: str, placeholder: str) -> None:
    module = only_module(
        f'<module name="m"><{element} name="p" {length}="8" {placeholder}="x"/></module>'
    )
    assert module.children == (Param("p", 8, "x", Location(1, 35)),)


@pytest.mark.parametrize("attribute", ["default", "scaffold"])
def test_union_takes_either_spelling(attribute: str) -> None:
    module = only_module(
        f'<module name="m"><union {attribute}="b"><module name="a"/><module name="b"/></union>'
        "</module>"
    )
    (union,) = module.children
    assert isinstance(union, Union)
    assert union.default == "b"


def test_same_name_in_different_scopes() -> None:
    parse_schema(
        '<schema name="s"><module name="a"><module name="a"/></module>'
        '<module name="b"><module name="a"/></module></schema>'
    )


def test_roles_and_unions_add_no_step_to_a_path() -> None:
    module = only_module(
        '<module name="m"><union><module name="a"/></union><param name="p" len="1"/><user>'
        '<module name="b"><param name="inner" len="1"/></module><param name="q" len="1"/></user>'
        "</module>"
    )
    assert [child.name for child in modules_in_scope(module.children)] == ["a", "b"]
    assert [param.name for param in own_params(module.children)] == ["p", "q"]


def test_scaffold_path_goes_through_roles_and_unions() -> None:
    schema = parse_schema(
        '<schema name="s"><user><module name="m"><union><module name="a"/></union></module></user>'
        '<scaffold modules="m\n m/a"/></schema>'
    )
    assert schema.scaffolds[0].paths == ("m", "m/a")


def test_a_primer_is_no_content() -> None:
    schema = parse_schema(
        """<schema name='s'>a <primer>
        One. &lt;Two&gt;
        </primer> b<module name='m'>c<primer from='modules'/></module></schema>"""
    )
    assert schema.primer == Primer(" One. <Two> ", Location(1, 20))
    one, two, module = schema.children
    assert (one, two) == (Text("a ", Location(1, 18)), Text(" b", Location(3, 19)))
    assert isinstance(module, Module)
    assert module.children == (Text("c", Location(3, 37)),)
    assert module.primer == Primer(None, Location(3, 38))


def test_argument_is_verbatim_but_for_references() -> None:
    prompt = parse_prompt("<prompt schema='s'><a p=' x\n\t&quot;&#10;' q = \"'\" r=''/></prompt>")
    assert prompt.children == (
        Import(
            "a",
            (
                Argument("p", ' x\n\t"\n', Location(1, 23)),
                Argument("q", "'", Location(2, 15)),
                Argument("r", "", Location(2, 23)),
            ),
            (),
            Location(1, 20),
        ),
    )


def test_source_is_normalised() -> None:
    prompt = parse_prompt('\ufeff<prompt schema="s">\r\na\rb</prompt>')
    assert prompt.source.text == '<prompt schema="s">\na\nb</prompt>'


def test_reserved_names_differ_by_case() -> None:
    assert "user" in RESERVED_NAMES
    assert isinstance(parse_prompt('<prompt schema="s"><User/></prompt>'), Prompt)


def test_argument_of_markup_is_not_an_argument() -> None:
    (node,) = parse_prompt('<prompt schema="s"><a xml:space="preserve"/></prompt>').children
    assert node == Import("a", (), (), Location(1, 20))

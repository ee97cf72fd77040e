"""`<module src="...">`: which files are read, and what is refused."""

from functools import partial
from os import mkfifo
from pathlib import Path

import pytest

from tests.pml.marked import assert_refused
from vllm_promptcache.pml import Limits, Location, Module, Text, parse_schema

SCHEMA = '<schema name="s">\n<module name="m" src="▲{}"/></schema>'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "schemas"
    (folder / "texts").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def load(folder: Path, src: str) -> Module:
    schema = parse_schema(SCHEMA.replace("▲", "").format(src), base_dir=folder)
    (module,) = schema.children
    assert isinstance(module, Module)
    return module


def assert_src_refused(folder: Path | None, src: str, reason: str) -> None:
    parse = partial(parse_schema, base_dir=folder)
    assert_refused(parse, SCHEMA.format(src), f"file `{src}` {reason}", "")


def test_file_is_the_only_text(folder: Path) -> None:
    (folder / "texts" / "a.txt").write_bytes(b"\xef\xbb\xbf\r\n 1 < 2 &amp; \xc3\xa9\r\nend\n\n")
    module = load(folder, "texts/a.txt")
    assert module.children == (Text(" 1 < 2 &amp; é\nend ", Location(2, 23)),)


def test_preserve_keeps_white_space(folder: Path) -> None:
    (folder / "a.txt").write_text("\n a \n")
    assert load(folder, 'a.txt" xml:space="preserve').children[0].text == "\n a \n"


@pytest.mark.parametrize("content", ["", " \n"])
def test_blank_file_is_no_text(folder: Path, content: str) -> None:
    (folder / "a.txt").write_text(content)
    assert load(folder, "a.txt").children == ()


def test_refused_without_folder() -> None:
    reason = "cannot be read: this schema was not loaded from a file"
    assert_src_refused(None, "a.txt", reason)


@pytest.mark.parametrize("src", ["../secret.txt", "texts/../../secret.txt", "/etc/hostname"])
def test_outside_is_refused(folder: Path, src: str) -> None:
    assert_src_refused(folder, src, "is outside of the schema's folder")


def test_link_to_the_outside_is_refused(folder: Path) -> None:
    (folder / "link.txt").symlink_to("../secret.txt")
    assert_src_refused(folder, "link.txt", "is outside of the schema's folder")


def test_link_within_the_folder_is_read(folder: Path) -> None:
    (folder / "texts" / "a.txt").write_text("a")
    (folder / "link.txt").symlink_to("texts/a.txt")
    assert load(folder, "link.txt").children[0].text == "a"


def test_links_in_a_circle_are_refused(folder: Path) -> None:
    (folder / "a.txt").symlink_to("b.txt")
    (folder / "b.txt").symlink_to("a.txt")
    assert_src_refused(folder, "a.txt", "cannot be read")


@pytest.mark.parametrize("src", ["", "missing.txt", "texts", "pipe"])
def test_no_regular_file_is_refused(folder: Path, src: str) -> None:
    mkfifo(folder / "pipe")
    assert_src_refused(folder, src, "does not exist or is not a regular file")


def test_not_utf8_is_refused(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"ab\xff")
    assert_src_refused(folder, "a.txt", "is not UTF-8 (byte 2)")


def test_control_character_is_refused(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"a\0")
    assert_src_refused(folder, "a.txt", "holds the character U+0000")


def test_name_too_long_for_the_file_system_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read: File name too long"):
        load(folder, "a" * 300)


def test_files_and_document_share_one_limit(folder: Path) -> None:
    (folder / "a.txt").write_text("a" * 100)
    text = '<schema name="s"><module name="a" src="a.txt"/><module name="b" src="▲a.txt"/></schema>'
    num_bytes = len(text.replace("▲", "").encode()) + 150
    parse = partial(parse_schema, base_dir=folder, limits=Limits(max_document_bytes=num_bytes))
    assert_refused(parse, text, "file `a.txt` is larger than the 50 bytes left", "")


@pytest.mark.parametrize("content", ["text", "<user/>"])
def test_content_beside_src_is_refused(folder: Path, content: str) -> None:
    marked = f'<schema name="s"><module name="m" ▲src="a.txt">{content}</module></schema>'
    message = "a module with `src` may have no content of its own"
    assert_refused(
        partial(parse_schema, base_dir=folder), marked, message, "leave out one of the two"
    )

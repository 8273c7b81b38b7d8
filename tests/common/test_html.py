"""Pages are rendered from templates of the package, and everything inserted is escaped."""

from __future__ import annotations

import jinja2
import pytest

from allinone.common.html import data_uri, render
from allinone.common.paths import PACKAGE

PAGE = "common/templates/page.html.j2"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a \"b\" & 'c'", "a &#34;b&#34; &amp; &#39;c&#39;"),
        ("{{ 7 * 7 }}{% if x %}", "{{ 7 * 7 }}{% if x %}"),
        ("</title><b>", "&lt;/title&gt;&lt;b&gt;"),
    ],
)
def test_inserted_text_is_escaped(text: str, escaped: str) -> None:
    assert f"<title>{escaped}</title>" in render(PAGE, title=text)


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render(PAGE)


def test_an_unknown_template_is_an_error() -> None:
    with pytest.raises(jinja2.TemplateNotFound):
        render("common/templates/none.html.j2", title="x")


def test_no_template_turns_escaping_off() -> None:
    # the folders are links in a source tree, and rglob does not follow links
    templates = [path for folder in PACKAGE.iterdir() for path in folder.glob("**/*.j2")]
    assert len(templates) >= 4
    for path in templates:
        text = path.read_text(encoding="utf-8")
        assert "|safe" not in text.replace(" ", "")
        assert "autoescape" not in text


def test_images_become_data_uris() -> None:
    assert data_uri(b"\x00\xff", "png") == "data:image/png;base64,AP8="

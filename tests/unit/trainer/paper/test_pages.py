"""The pages as their readers parse them: escaping per format, nothing loaded from elsewhere, partial grids."""

import json
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from trainer.paper.as_html import html
from trainer.paper.as_latex import escape as latex_escape
from trainer.paper.as_latex import latex
from trainer.paper.as_markdown import escape as markdown_escape
from trainer.paper.as_markdown import markdown
from trainer.paper.document import Column, Document, Entry, Paragraph, Section, Table, Tile
from trainer.paper.pages import write_results
from trainer.paper.records import Arm

HOSTILE = r"<b>50%</b> & a_b|c [x](y) #1 $2 {z} \t ~ ^ * ` ←"


class _Page(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self.style = [], [], ""
        self.open = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def hostile_document():
    table = Table(
        "t", HOSTILE, (Column(HOSTILE), Column("b", wrap=True)), ((Entry(HOSTILE), Entry("x", HOSTILE, True)),)
    )
    section = Section("s", HOSTILE, (table,))
    return Document(HOSTILE, (Paragraph(HOSTILE, notice=True),), (Tile(HOSTILE, "1", HOSTILE),), (section,))


def small_grid(made_up, folder):
    transfers = (made_up.action("second", "head", 0.5),)
    for arm in (Arm(student="r3d"), made_up.full_arm("r3d", "c3d")):
        made_up.write_cell(folder, made_up.cell_result(arm, transfers=transfers))
    control = Arm(student="r3d", teacher="c3d", teacher_data="untrained")
    made_up.write_cell(folder, made_up.cell_result(control))
    return folder


@pytest.fixture(scope="module")
def results(made_up, tmp_path_factory):
    folder = small_grid(made_up, tmp_path_factory.mktemp("paper"))
    made_up.write_run(folder, command=["preceptor", "paper", "--out", "a b"], machines=["x86, 2 cores"], scale="demo")
    out = folder / "results"
    write_results(folder, out)
    return out


def test_html_shows_every_text_as_it_is():
    page = _Page(html(hostile_document(), HOSTILE).decode())
    assert page.text.replace("\xa0", " ").count(HOSTILE) == 12
    assert "b" not in [tag for tag, _ in page.tags]


def test_markdown_shows_every_text_as_it_is():
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(markdown(hostile_document()))
    page = _Page(rendered)
    assert page.text.count(HOSTILE) == 9
    assert not {"b", "a"} & {tag for tag, _ in page.tags}


def test_markdown_tables_keep_their_columns_whatever_is_in_them():
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(markdown(hostile_document()))
    assert [tag for tag, _ in _Page(rendered).tags if tag in ("th", "td")] == ["th", "th", "td", "td"]


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [
        ("50 % & a_b #1 $2 {z}", r"50 \% \& a\_b \#1 \$2 \{z\}"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("~ ^ < > |", r"\textasciitilde{} \textasciicircum{} \textless{} \textgreater{} \textbar{}"),
        ("R3D ← C3D ± −1 –", r"R3D $\leftarrow$ C3D $\pm$ $-$1 --"),
        ("naïve 日本 \x07", "naïve ?? ?"),
        ("two\nlines", "two lines"),
        ("paper --out", "paper -{}-out"),
    ],
)
def test_latex_escapes_each_character_once(plain, escaped):
    assert latex_escape(plain) == escaped


def test_markdown_escapes_each_character_once():
    assert markdown_escape("a|b * \\ <c>\nd") == r"a\|b \* \\ \<c\> d"


def test_latex_has_booktabs_tables_with_balanced_braces_and_environments():
    page = latex(hostile_document())
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert page.count(rule) == 1
    bare = re.sub(r"\\[\\{}]", "", page)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\begin\{(\w+)\}", page) == ["document", "itemize", "table", "adjustbox", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", page) == ["itemize", "tabular", "adjustbox", "table", "document"]


def test_the_page_loads_nothing_and_links_to_itself_only(results):
    page = _Page((results / "results.html").read_text())
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for _, attributes in page.tags:
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:").startswith("data:image/png;base64,") or name not in attributes
        if "href" in attributes:
            assert attributes["href"].removeprefix("#") in anchors
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_every_picture_that_a_page_names_is_a_file_beside_it(results):
    named = set(re.findall(r"\]\(([\w-]+\.png)\)", (results / "results.md").read_text()))
    in_latex = set(re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", (results / "results.tex").read_text()))
    files = {path.name for path in results.glob("*.png")}
    assert named == in_latex == files
    assert {"gains.png", "curves-100.png", "milestones.png", "cost.png", "controls.png"} == files
    assert all((results / name).read_bytes().startswith(b"\x89PNG") for name in files)


@pytest.mark.parametrize("name", ["results.md", "results.html", "results.tex"])
def test_pages_tell_how_they_were_made_and_what_is_missing(results, name):
    page = (results / name).read_text().replace("&nbsp;", " ").replace("-{}-", "--")
    assert "preceptor paper --out" in page
    assert "x86, 2 cores" in page
    assert "This is not the whole grid: 3 of 10 cells are there." in page
    assert re.search(r"c3d.{0,8}scratch.{0,4}f100", page)


def test_results_json_holds_all_numbers_and_is_strict_json(results):
    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((results / "results.json").read_text(), parse_constant=refuse)
    numbers = {n["arm"]["teacher_data"]: n for n in content["findings"]["numbers"]}
    assert set(numbers) == {"none", "full", "untrained"}
    assert numbers["full"]["stages"]["early"]["chosen"] == {"mean": 0.4, "std": None, "values": [0.4]}
    assert numbers["full"]["stages"]["early"]["gain"]["interval"] == [0.0, 0.0]
    assert {claim["verdict"] for claim in content["claims"]} >= {"not testable here"}
    assert content["run"]["machines"] == ["x86, 2 cores"]


def test_the_same_cells_give_the_same_files(results, tmp_path):
    again = tmp_path / "again"
    write_results(results.parent, again)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in results.iterdir()
    }


def test_a_folder_without_any_cell_gives_pages_that_say_so(tmp_path):
    (tmp_path / "cells").mkdir()
    write_results(tmp_path, tmp_path / "results")
    page = (tmp_path / "results" / "results.md").read_text()
    assert "There is no run.json" in page.replace("\\", "")
    assert "not testable here" in page

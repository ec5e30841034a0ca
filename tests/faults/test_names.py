"""Names that hold markup, formulas or control characters read as they are and have no effect anywhere."""

import html
import html.parser
import json
import re
import shutil
import unicodedata

import markdown
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from common.model_card import model_card
from common.text import one_line
from evaluate.cli.main import main
from evaluate.report.charts import accuracy_scatter, bar_chart, measure_curves
from evaluate.report.markdown import markdown_page
from tests.evaluate.conftest import save_untrained
from tests.evaluate.results import make_metric, make_score
from train.runs.run_folder import RunFolder
from train.watching.monitor import Monitor

NAMES = [
    "<img src=x onerror=alert(1)> (rank 1",
    "<script>alert(1)",
    "' onmouseover='alert(1)",
    '"><svg onload=alert(1)>',
    "a|b",
    "`x`",
    "$\\frac{$",
    "$x^$",
    "![p](http:example.org)",
    "[x](javascript:alert(1)) __b__ **c**",
    "two\nlines | # and a heading",
    "\x1b[31mred\x07\x9b2J",
    "left\u202eright\u2066",
    "&lt;b&gt;&#60;",
    "\udcff not UTF-8",
]
FOLDERS = [NAMES[number] for number in (0, 2, 4, 6, 9, 10, 11)]
CLASSES = [*filter(str.isprintable, NAMES), "<b>as many as outputs"]
OUR_TAGS = {
    "html", "head", "meta", "title", "link", "style", "body", "h1", "h2", "h3", "p", "form", "fieldset", "legend",
    "label", "input", "a", "div", "table", "tr", "th", "td", "wbr", "b", "small", "figure", "figcaption", "img",
    "section", "dl", "dt", "dd", "script", "svg", "g", "path", "defs", "clippath", "rect", "use", "metadata", "rdf:rdf",
    "cc:work", "dc:type", "dc:format", "dc:creator", "cc:agent", "dc:title", "dc:date",
}  # fmt: skip

MARKDOWN_TAGS = {"h1", "h2", "p", "strong", "ul", "li", "code", "table", "thead", "tbody", "tr", "th", "td"}


class Page(html.parser.HTMLParser):
    """What elements a page has, with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.source, self.elements, self.text, self.within = text, [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.within.append(tag)

    def handle_endtag(self, tag):
        if tag in self.within:
            while self.within.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.within):
            self.text += data


def harmless(page, scripts=0):
    """No element that is not ours, none that does or fetches anything."""
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == scripts
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert tag != "img" or attributes["src"].startswith("data:image/")
        assert tag != "a" or attributes["href"] in ("per_image.parquet", "scores.json", "scores.csv")


def without_effect(text):
    """Whether a terminal shows every character of it, but for line breaks."""
    odd = [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter != "\n"]
    return not odd


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of checkpoints that bear such names, on classes that do."""
    place = tmp_path_factory.mktemp("names")
    first = save_untrained(place / "first", "demo")
    config = json.loads((first / "config.json").read_text())
    del config["config_sha256"]
    (first / "config.json").write_text(json.dumps({**config, "classes": CLASSES}))
    for name in FOLDERS:
        shutil.copytree(first, place / "checkpoints" / name)
    for name in CLASSES:
        (place / "data" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(place / "data" / name / "1.png")
    main(["--ckpt", *(str(place / "checkpoints" / name) for name in FOLDERS), "--data", "imagefolder", "--data-root",
          str(place / "data"), "--limit", "9", "--workers", "0", "--explainer", "grad_cam", "--metric", "average_drop",
          "--device", "cpu", "--out", str(place / "out")])  # fmt: skip
    return place / "out"


def test_the_page_holds_nothing_but_ours(report):
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.elements} <= OUR_TAGS
    harmless(page, scripts=1)
    assert all(one_line(name) in page.text for name in FOLDERS)
    headings = set(re.findall(r"<h3>(.*?) <small>", page.source))
    assert len(headings) == 9 and headings <= {html.escape(one_line(name)) for name in CLASSES}
    rows = [attributes["data-checkpoints"] for tag, attributes in page.elements if tag == "tr" and attributes]
    boxes = [attributes["data-checkpoint"] for _, attributes in page.elements if "data-checkpoint" in attributes]
    assert set(rows) == set(boxes) == set(map(one_line, FOLDERS))


def test_every_table_in_markdown_keeps_its_columns(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    page = Page(markdown.markdown(text, extensions=["tables"]))
    harmless(page)
    assert {tag for tag, _ in page.elements} <= MARKDOWN_TAGS
    assert all(one_line(name) in page.text for name in FOLDERS)


def item(name):
    curve = {"insertion": make_metric(0.5, curve=[0.0, 0.5, 1.0])}
    return make_score(name, "grad_cam", name, alignment=0.5, interval=[0.4, 0.6], measures=curve)


def curves(scores):
    return measure_curves(scores, "insertion", ("share", "probability"))


@pytest.mark.parametrize("draw", [bar_chart, accuracy_scatter, curves])
@pytest.mark.parametrize("name", map(one_line, NAMES))
def test_figures_draw_a_name_as_it_is(draw, name, tmp_path):
    figure = draw([item(name)])
    figure.savefig(tmp_path / "figure.svg")
    texts = [text for text in figure.findobj(Text) if name in text.get_text()]
    assert texts and not any(text.get_parse_math() for text in texts)
    page = Page((tmp_path / "figure.svg").read_text(encoding="utf-8"))
    harmless(page)
    assert {tag for tag, _ in page.elements} <= OUR_TAGS


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_shows_a_name_and_obeys_none(name, tmp_path, capsys):
    assert without_effect(one_line(name)) and "\n" not in one_line(name)
    assert without_effect(markdown_page(name, name, [name], [(name, [name], [[name]])], {name: name, "command": name}))


@pytest.mark.parametrize("name", [*NAMES, "```\n# heading\n<script>alert(1)</script>"])
def test_a_card_says_a_name_and_does_nothing(name):
    config = {
        "license": name,
        "dcls": {"rule": name, "kernel_count": 3, "dilated_kernel_size": 7, "interpolation": name},
        "model": name,
        "num_classes": 12,
        "transform": {"resize": 64, "crop": 64, "interpolation": name, "mean": [0.5], "std": [0.5]},
        "metrics": {"top1": 50.0, name: name},
        "command": f"python train/main.py name={name}",
        "recipe": {"name": name, "data": {"source": name}},
        "weights_sha256": name,
        "versions": {name: name},
    }
    text = model_card(name, config, [])
    assert without_effect(text)
    page = Page(markdown.markdown(text.partition("\n---\n")[2], extensions=["tables", "fenced_code"]))
    harmless(page)
    blocks = [tag for tag, _ in page.elements if tag in ("h1", "h2", "table", "pre")]
    assert blocks == ["h1", "table", "pre", "pre", "h2", "pre"]
    assert not {tag for tag, _ in page.elements} & {"a", "img", "svg", "b", "strong", "em"}


@pytest.mark.parametrize("name", NAMES)
def test_a_text_of_tensorboard_is_code(name, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(SummaryWriter, "add_text", lambda self, tag, text, *_: written.append(text))
    monitor = Monitor(RunFolder(tmp_path), True, 1, 0, True)
    monitor.text("settings", f"name: {name}\n# more")
    monitor.close()
    page = Page(markdown.markdown(written[0]))
    assert [tag for tag, _ in page.elements] == ["pre", "code"]
    assert without_effect(written[0])

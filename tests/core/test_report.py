"""The report is read back with the standard library's HTML parser and Pillow: what went in must come out, and nothing else."""

import base64
import io
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fewstep import __version__
from fewstep.report import Curve, Report, _apart

VOID = {"meta", "link", "img", "input", "br"}
EVIL = "<script>alert('x')</script> & \"quoted\" {braces} $tex_{$"


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails where tags do not close in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts = [], [], {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def text(self, tag):
        return self.texts.get(tag, [])

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def pictures(self):
        prefix = "data:image/png;base64,"
        assert all(a["src"].startswith(prefix) for a in self.all("img"))
        return {a["alt"]: base64.b64decode(a["src"][len(prefix) :], validate=True) for a in self.all("img")}


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="png")
    return file.getvalue()


def full_report(name="plain"):
    report = Report(f"{name} title", f"{name} subtitle")
    report.headline([(f"{name} value", f"{name} label", f"{name} card note")])
    report.text(f"{name} heading", [f"{name} first", f"{name} second"])
    report.table(
        f"{name} scores", ["method", f"{name} column"], [["teacher", "28.57"], [f"{name} row", "28.41"]], emphasise=1
    )
    curves = [Curve(f"{name} curve", [1, 2, 4], [20.5, 24.25, 26]), Curve("points", [1, 15], [21, 27], style="markers")]
    report.curves(
        f"{name} chart", curves, f"{name} x", f"{name} y", log_x=True, note="n", levels={f"{name} level": 25.75}
    )
    report.compare(f"{name} pair", (f"{name} before", picture(6, 8)), (f"{name} after", picture(24, 32)))
    report.gallery(f"{name} crops", [(f"{name} crop", picture(5, 7, 1)), ("photo", picture(9, 3, 2))], zoom=4)
    return report


@cache
def plain_html():
    return full_report().html()


def plain_page():
    return Page(plain_html())


def chart(curves, **options):
    report = Report("t")
    report.curves("h", curves, "evaluations", "score", **options)
    return Page(report.html())


def test_page_is_whole_and_asks_nothing_of_the_network():
    html = plain_html()
    page = Page(html)
    for _, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "style"):
            value = attrs.get(name) or ""
            assert value.startswith(("data:", "#")) or "//" not in value
            assert "url(" not in value.replace("url(#", "")
    # Names of XML vocabularies are no addresses to load; nothing else looks like an address.
    assert re.findall(r"https?://[^\s\"']*", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)) == []
    assert "@import" not in html and page.all("script") == [{}]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert f"made by fewstep {__version__}" in page.text("footer")


def test_parts_keep_their_order_and_text():
    page = plain_page()
    assert page.text("title") == page.text("h1") == ["plain title"]
    assert page.text("h2") == [f"plain {part}" for part in ("heading", "scores", "chart", "pair", "crops")]
    assert page.text("dd") == ["plain value", "plain card note"] and page.text("dt") == ["plain label"]
    assert {"plain first", "plain second"} <= set(page.text("p"))


def test_markup_in_any_text_is_shown_and_never_run():
    plain, evil = plain_page(), Page(full_report(EVIL).html())
    assert [tag for tag, _ in evil.elements] == [tag for tag, _ in plain.elements]
    assert evil.text("h1") == [f"{EVIL} title"] and f"{EVIL} before" in evil.pictures()
    assert f"{EVIL} y" in evil.text("text") and f"{EVIL} level: 25.75" in evil.text("li")


def test_pictures_come_back_pixel_for_pixel():
    pictures = plain_page().pictures()
    expected = {
        "plain before": picture(6, 8),
        "plain after": picture(24, 32),
        "plain crop": picture(5, 7, 1),
        "photo": picture(9, 3, 2),
    }
    assert pictures.keys() == expected.keys()
    for label, pixels in expected.items():
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures[label]))), pixels)


def test_png_files_are_kept_as_they_are():
    data = png(picture(4, 4))
    report = Report("t")
    report.gallery("", [("file", data)])
    assert Page(report.html()).pictures() == {"file": data}


def test_sounds_are_in_the_page_byte_for_byte():
    data = b"RIFF\x08\x00\x00\x00WAVEdata"
    report = Report("t")
    report.sounds("speech", [(EVIL, data), ("clean", data)])
    page = Page(report.html())
    players = page.all("audio")
    assert [a["aria-label"] for a in players] == page.text("figcaption") == [EVIL, "clean"]
    assert {base64.b64decode(a["src"].removeprefix("data:audio/wav;base64,"), validate=True) for a in players} == {data}
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "media-src data:" in policy
    with pytest.raises(ValueError, match="must be a wav file"):
        report.sounds("", [("x", b"ID3")])


def test_enlarged_pictures_keep_hard_pixels():
    report = Report("t")
    report.gallery("", [("small", picture(4, 5))], zoom=3)
    report.gallery("", [("whole", picture(4, 5))])
    report.compare("", ("low", picture(150, 200)), ("high", picture(600, 800)))
    page = Page(report.html())
    assert {a["alt"]: a.get("class") for a in page.all("img")} == {
        "small": "pixels",
        "whole": None,
        "low": "pixels",
        "high": None,
    }
    assert "--w:15px" in page.all("figure")[0]["style"]


def test_without_scripts_both_pictures_stand_and_the_slider_is_hidden():
    page = plain_page()
    (slider,) = page.all("input")
    assert slider["type"] == "range" and "hidden" in slider and "plain before" in slider["aria-label"]
    assert "live" not in [a.get("class") for a in page.all("div")]


def test_chart_shows_labels_levels_and_numbers():
    page = plain_page()
    assert {"plain x", "plain y"} <= set(page.text("text"))
    assert page.text("li") == ["plain curve", "points", "plain level: 25.75"]
    assert {"20.5", "24.25", "26", "1", "2", "4"} <= set(page.text("td"))
    alts = [a["aria-label"] for a in page.all("div") if a.get("role") == "img"]
    assert len(alts) == 2 and all(
        word in alt for alt in alts for word in ("plain curve", "points", "plain level", "plain x", "plain y")
    )


@pytest.mark.parametrize("log_x", [False, True])
def test_evaluations_are_labelled_by_themselves(log_x):
    ticks = chart([Curve("c", [1, 2, 4, 8], [1.5, 2.5, 3.5, 4.5])], log_x=log_x).text("text")
    assert {"1", "2", "4", "8"} <= set(ticks) and not {"3", "5", "6", "7", "10"} & set(ticks)


def test_labels_on_the_axis_do_not_collide():
    assert _apart([1, 2, 4, 8, 15, 16], log=True) == [1, 2, 4, 8, 15]
    assert _apart([1, 2, 4, 8, 100], log=False) == [1, 8, 100]
    assert _apart([3], log=True) == [3]


@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.parametrize("xs", [[7], list(range(1, 2001)), [0.013, 0.4, 2.7], [1, 10, 1e6, 2.5e6, 3.5]])
def test_any_range_gives_a_chart_with_ticks(xs, log_x):
    page = chart([Curve("c", xs, [0.5] * len(xs))], log_x=log_x)
    assert any(re.fullmatch(r"[\d.e+-]+", text) for text in page.text("text"))


@pytest.mark.parametrize(
    ("ys", "expected"),
    [
        ([0.3, 0.45, 0.7], {"0.4", "0.5", "0.6"}),
        ([0.02, 0.3, 1.7], {"0.02", "0.05", "0.1", "1"}),
        ([1e-5, 3.0], {"1e-05", "0.001", "0.1"}),
    ],
)
def test_log_scale_of_scores_is_labelled_with_plain_numbers(ys, expected):
    assert expected <= set(chart([Curve("c", range(len(ys)), ys)], log_y=True, levels={"level": ys[0]}).text("text"))


def test_chart_follows_the_theme_of_the_page():
    html = plain_html()
    assert "#010203" not in html
    paints = {
        p.lower()
        for p in re.findall(
            r"(?:fill|stroke): ?(#\w+|currentColor)", "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
        )
    }
    assert "currentcolor" in paints and not paints & {"#000000", "#ffffff"}


def test_ids_of_charts_are_unique_and_found():
    report = Report("t")
    for _ in range(2):
        report.curves("same", [Curve("c", [1, 2], [3, 4])], "x", "y")
    page = Page(report.html())
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids)) and {a["xlink:href"][1:] for a in page.all("use")} <= set(ids)


def test_numbers_that_are_not_finite_leave_a_gap():
    page = chart([Curve("c", [1, 2, 3], [1.0, float("nan"), float("inf")])])
    assert {"nan", "inf"} <= set(page.text("td"))


def test_one_row_is_emphasised():
    rows = [a for a in plain_page().all("tr") if a.get("class") == "emphasised"]
    assert len(rows) == 1


def test_same_calls_give_the_same_file():
    assert full_report().html() == plain_html()


def test_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new folder" / "ähnlich.html"
    report = full_report("naïve")
    report.gallery("", [("漢字 \udcff.png", picture(4, 4))])  # how Python holds a byte of a file name that is not UTF-8
    assert report.write(path) == path
    first = path.read_text(encoding="utf-8")
    Page(first)
    assert "naïve title" in first and "漢字 ?.png" in first
    Report("other").write(path)
    assert "other" in path.read_text(encoding="utf-8") and os.listdir(path.parent) == [path.name]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        full_report().write(path)
    assert os.listdir(tmp_path) == ["report.html"] and path.read_text() == "old"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.gallery("h", [("a", b"GIF89a")]), "PNG"),
        (lambda r: r.gallery("h", [("a", np.zeros((4, 4, 3)))]), "uint8"),
        (lambda r: r.gallery("h", [("a", np.zeros((4, 4), np.uint8))]), r"\(4, 4\)"),
        (lambda r: r.compare("h", ("a", picture(4, 8)), ("b", picture(8, 8))), "8x4 and 8x8"),
        (lambda r: r.table("h", ["a", "b"], [["1"]]), "1 cells.* 2 columns"),
        (lambda r: r.table("h", ["a"], [["1"]], emphasise=1), "rows 0 to 0"),
        (lambda r: r.curves("h", [], "x", "y"), "no curve"),
        (lambda r: r.curves("h", [Curve("c", [0, 1], [1, 2])], "x", "y", log_x=True), "above 0"),
        (
            lambda r: r.curves("h", [Curve("c", [0, 1], [1, 2])], "x", "y", log_y=True, levels={"l": 0}),
            "log_y .* above 0",
        ),
        (lambda r: Curve("c", [1, 2], [1]), "2 x and 1 y"),
        (lambda r: Curve("c", [], []), "at least one"),
    ],
)
def test_wrong_input_is_named_and_adds_nothing(call, message):
    report = Report("t")
    before = report.html()
    with pytest.raises(ValueError, match=message):
        call(report)
    assert report.html() == before


def test_charts_leave_matplotlib_as_it_was():
    # In a process of its own: another test may have imported pyplot.
    code = """
import sys
import fewstep.report as r
assert not {"torch", "matplotlib", "PIL", "numpy"} & set(sys.modules)
import matplotlib
before = matplotlib.rcParams.copy()  # dict(rcParams) would ask for the backend, which imports pyplot
report = r.Report("t")
report.curves("h", [r.Curve("c", [1, 2], [3, 4])], "x", "y")
assert matplotlib.rcParams.copy() == before and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)

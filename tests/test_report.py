"""The report: pictures, charts, tables, and the page that holds them."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from poisonkit import report
from poisonkit.errors import ArgumentError
from poisonkit.report import Headline, Section, Series

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "<script>alert('x')</script> & \"quotes\""


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# pictures


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (1, 3, 8), (3, 1, 1), (3, 13, 31), (3, 64, 64), (1, 1, 300)])
def test_png_is_read_back_to_the_same_pixels(shape: tuple[int, ...]) -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = random_images(*shape)
    with image_module.open(io.BytesIO(report.png(pixels))) as picture:
        picture.load()
        colour = len(shape) == 3 and shape[0] == 3
        assert picture.format == "PNG"
        assert picture.mode == ("RGB" if colour else "L")
        assert picture.size == (shape[-1], shape[-2])
        planes = pixels.reshape(-1, *shape[-2:])
        assert picture.tobytes() == planes.permute(1, 2, 0).contiguous().numpy().tobytes()


def test_png_of_a_view_is_that_of_its_copy() -> None:
    view = random_images(9, 3, 12).permute(1, 2, 0)[:, ::2, 1:]
    assert not view.is_contiguous()
    assert report.png(view) == report.png(view.contiguous())


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(4, 4),
        *(torch.zeros(shape, dtype=torch.uint8) for shape in [(2, 4, 4), (3, 0, 4), (4,), (1, 3, 4, 4)]),
    ],
)
def test_png_rejects(image: Tensor) -> None:
    with pytest.raises(ArgumentError, match="image must be"):
        report.png(image)


def test_picture_grid_by_hand() -> None:
    colour = torch.tensor([[[[1]], [[2]], [[3]]], [[[4]], [[5]], [[6]]]], dtype=torch.uint8)
    grey = torch.tensor([[[[9]]]], dtype=torch.uint8)
    grid = report.picture_grid([colour, grey], scale=2, gap=1, background=(70, 80, 90))
    red = [[1, 1, 70, 4, 4], [1, 1, 70, 4, 4], [70] * 5, [9, 9, 70, 70, 70], [9, 9, 70, 70, 70]]
    blue = [[3, 3, 90, 6, 6], [3, 3, 90, 6, 6], [90] * 5, [9, 9, 90, 90, 90], [9, 9, 90, 90, 90]]
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, 5, 5)
    assert grid[0].tolist() == red
    assert grid[2].tolist() == blue


def test_picture_grid_enlarges_each_pixel_into_a_square() -> None:
    image = random_images(1, 1, 2, 3)
    grid = report.picture_grid([image], scale=4)
    assert torch.equal(grid, torch.kron(image[0, 0], torch.ones(4, 4, dtype=torch.uint8)).expand(3, 8, 12))


@pytest.mark.parametrize(("side", "drawn"), [(8, 64), (28, 84), (32, 64), (64, 64), (224, 224)])
def test_picture_grid_brings_every_size_to_about_the_same(side: int, drawn: int) -> None:
    assert report.picture_grid([random_images(3, 1, side, side)] * 2).shape == (3, 2 * drawn + 2, 3 * drawn + 4)


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([], {}),
        ([torch.zeros(1, 1, 2, 2)], {}),
        ([random_images(1, 2, 4, 4)], {}),
        ([random_images(1, 4, 4)], {}),
        ([random_images(0, 1, 4, 4)], {}),
        ([random_images(1, 1, 4, 4), random_images(1, 1, 4, 5)], {}),
        ([random_images(1, 1, 4, 4)], {"scale": 0}),
        ([random_images(1, 1, 4, 4)], {"gap": -1}),
    ],
)
def test_picture_grid_rejects(rows: list[Tensor], options: dict[str, int]) -> None:
    with pytest.raises(ArgumentError):
        report.picture_grid(rows, **options)


# charts


def svg_texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def svg_with_class(svg: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in svg.iter() if name in element.get("class", "").split()]


def certified(**options: bool) -> ElementTree.Element:
    series = [Series("DPA", [0, 1, 2, 4], [1.0, 0.75, 0.5, 0.25]), Series("Finite Aggregation", [0, 2], [0.9, 0.6])]
    return ElementTree.fromstring(
        report.line_chart(series, title="Certified accuracy", x_label="poisoned rows", y_label="share", **options)
    )


def test_line_chart_draws_every_point_once_and_says_its_value() -> None:
    svg = certified(step=True)
    points = svg_with_class(svg, "point")
    assert [point[0].text for point in points[:2]] == [
        "DPA: 100.0 % at 0 (poisoned rows)",
        "DPA: 75.0 % at 1 (poisoned rows)",
    ]
    assert len(points) == 6
    assert svg.get("role") == "img"
    assert svg[0].tag == f"{SVG}title"
    assert svg[0].text == "Certified accuracy"
    texts = svg_texts(svg)
    assert [text for text in texts if text.endswith("%")] == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
    assert [text for text in texts if text.isdigit()] == ["0", "1", "2", "3", "4"]
    assert {"DPA", "Finite Aggregation", "poisoned rows", "share"} <= set(texts)


def test_line_chart_by_hand() -> None:
    # down: title 19 + subtitle 18 + one line of legend 20 + 24 = 81, to 291; across: 10 + 8 · len("100 %") = 50, to 466
    points = [point.get("transform") for point in svg_with_class(certified(), "point")]
    assert points[:4] == [
        "translate(50.0,81.0)",
        "translate(154.0,133.5)",
        "translate(258.0,186.0)",
        "translate(466.0,238.5)",
    ]


def test_a_step_keeps_its_value_until_the_next_x() -> None:
    def lines(step: bool) -> list[str | None]:
        return [
            line.get("d") for line in svg_with_class(certified(step=step), "line") if "h20" not in (line.get("d") or "")
        ]

    assert lines(step=True)[0] == "M50.0 81.0H154.0V133.5H258.0V186.0H466.0V238.5"
    assert lines(step=False)[0] == "M50.0 81.0L154.0 133.5L258.0 186.0L466.0 238.5"


def test_line_chart_axes_are_round_and_whole_where_the_data_are() -> None:
    def ticks(x: list[float], y: list[float]) -> list[str]:
        svg = ElementTree.fromstring(
            report.line_chart([Series("loss", x, y)], title="t", x_label="x", y_label="y", percent=False)
        )
        return [text for text in svg_texts(svg) if re.fullmatch(r"-?[\d.,]+", text)]

    assert ticks([0, 1], [2.25, 2.75]) == ["2.2", "2.3", "2.4", "2.5", "2.6", "2.7", "2.8", "0", "1"]
    assert ticks([3], [7]) == ["7", "7.2", "7.4", "7.6", "7.8", "8", "3"]
    assert ticks([0, 50_000], [-1, 1])[5:] == ["0", "10,000", "20,000", "30,000", "40,000", "50,000"]


def test_logarithmic_axes_draw_a_power_as_a_line() -> None:
    widths = [8, 16, 32, 64, 128]
    options = {"title": "t", "x_label": "w", "y_label": "s", "percent": False, "log_x": True, "log_y": True}
    chart = report.line_chart([Series("s", widths, [0.01 * w**2 for w in widths])], **options)  # type: ignore[arg-type]
    svg = ElementTree.fromstring(chart)
    places = [point.get("transform", "")[10:-1].split(",") for point in svg_with_class(svg, "point")]
    steps = [(float(x1) - float(x0), float(y1) - float(y0)) for (x0, y0), (x1, y1) in pairwise(places)]
    assert len(steps) == 4
    assert all(step == pytest.approx(steps[0], abs=0.11) for step in steps)
    assert {"10", "20", "50", "100", "0.5", "200"} <= set(svg_texts(svg))
    for series in (Series("s", [0, 1], [1, 2]), Series("s", [1, 2], [-1, 1])):
        with pytest.raises(ArgumentError, match="above 0 on a logarithmic axis"):
            report.line_chart([series], **options)  # type: ignore[arg-type]


def test_markers_step_aside_for_a_dense_curve() -> None:
    svg = ElementTree.fromstring(
        report.line_chart([Series("k", range(100), [0.0] * 100)], title="t", x_label="x", y_label="y")
    )
    assert len(svg_with_class(svg, "dense")) == len(svg_with_class(svg, "point")) == 100
    assert "k" not in svg_texts(svg), "one series needs no legend"


def test_twelve_series_look_different() -> None:
    def look(element: ElementTree.Element) -> tuple[str | None, str | None]:
        return element.get("d"), element.get("style")

    series = [Series(f"s{i}", [0], [0.5]) for i in range(12)]
    svg = ElementTree.fromstring(report.line_chart(series, title="t", x_label="x", y_label="y"))
    assert len({look(point) for point in svg_with_class(svg, "point")}) == 12
    with pytest.raises(ArgumentError, match="series must be 1 to 12, got 13; draw more in several charts"):
        report.line_chart([*series, series[0]], title="t", x_label="x", y_label="y")


@pytest.mark.parametrize(("x", "y"), [([], []), ([1, 2], [1]), ([0], [float("nan")]), ([float("inf")], [0])])
def test_series_rejects(x: list[float], y: list[float]) -> None:
    with pytest.raises(ArgumentError, match="series must be"):
        Series("s", x, y)


def test_bar_chart_lengths_are_in_proportion() -> None:
    svg = ElementTree.fromstring(
        report.bar_chart(
            ["undefended", "Improved Activation Clipping"],
            {"clean accuracy": [1.0, 0.5], "attack success": [0.25, 0.0]},
            title="Defenses",
            y_label="share",
        )
    )
    widths = [float(bar.get("width", "")) for bar in svg_with_class(svg, "bar")]
    assert widths == [pytest.approx(share * widths[0], abs=0.06) for share in (1, 0.25, 0.5, 0)]
    assert svg_with_class(svg, "bar")[1][0].text == "undefended, attack success: 25.0 %"
    texts = svg_texts(svg)
    assert {"100.0 %", "25.0 %", "50.0 %", "0.0 %", "Improved Activation", "Clipping"} <= set(texts)


@pytest.mark.parametrize("series", [{}, {"a": [1.0]}, {"a": [1.0, -1.0]}, {"a": [1.0, float("nan")]}])
def test_bar_chart_rejects(series: dict[str, list[float]]) -> None:
    with pytest.raises(ArgumentError, match="series must be"):
        report.bar_chart(["one", "two"], series, title="t", y_label="y")


def test_charts_escape_what_they_are_told() -> None:
    chart = report.line_chart([Series(EVIL, [0], [0.1])] * 2, title=EVIL, x_label=EVIL, y_label=EVIL)
    bars = report.bar_chart([EVIL], {EVIL: [0.1], "b": [0.2]}, title=EVIL, y_label=EVIL)
    for svg in (chart, bars):
        assert "<script" not in svg
        assert EVIL in {element.text for element in ElementTree.fromstring(svg).iter()}


# tables

HEADERS = ["defense", "clean accuracy", "radius", "note"]
ROWS = [["undefended", "97.4 %", None, "95 % → 3 %"], ["DPA, k = 16", "9.1 %", 12, "<b>"], ["EPIC", "—", 3, None]]


def test_text_table_aligns_numbers_right_and_names_left() -> None:
    assert report.text_table(HEADERS, ROWS) == (
        "defense      clean accuracy  radius  note\n"
        "-----------  --------------  ------  ----------\n"
        "undefended           97.4 %          95 % → 3 %\n"
        "DPA, k = 16           9.1 %      12  <b>\n"
        "EPIC                      —       3"
    )


@pytest.mark.parametrize("cell", ["-3", "1,281,167", "1e-3", "95.1 ± 0.3 %", "12 s", "2.5×", "−1.5 MiB"])
def test_a_number_may_carry_a_sign_an_error_and_a_unit(cell: str) -> None:
    assert report.text_table(["a long header"], [[cell]]).endswith(cell.rjust(13))


@pytest.mark.parametrize("cell", ["16 partitions", "95 % → 3 %", "3-NN", "k = 16"])
def test_text_that_starts_or_ends_in_a_digit_is_still_text(cell: str) -> None:
    assert report.text_table(["a very long header"], [[cell]]).endswith("\n" + cell)


def test_html_table_escapes_and_names_its_rows() -> None:
    table = report.html_table([EVIL, "clean accuracy"], [["<b>", "97.4 %"], ["DPA", "—"]], EVIL)
    assert "<script" not in table
    assert '<th scope="row">&lt;b&gt;</th><td class="number">97.4 %</td>' in table
    assert '<th scope="col" class="number">clean accuracy</th>' in table


def test_csv_is_read_back_to_the_same_values() -> None:
    rows = [["a, b", 0.1 + 0.2, None], ['"quoted"\nline', 1, "é"]]
    text = report.csv_text(["name", "x", "y"], rows)
    assert list(csv.reader(io.StringIO(text))) == [
        ["name", "x", "y"],
        ["a, b", "0.30000000000000004", ""],
        ['"quoted"\nline', "1", "é"],
    ]
    assert "\r" not in text


@pytest.mark.parametrize(("headers", "rows"), [([], []), (["a", "b"], [["1"]])])
def test_tables_reject(headers: list[str], rows: list[list[str]]) -> None:
    for table in (report.text_table, report.csv_text):
        with pytest.raises(ArgumentError):
            table(headers, rows)
    with pytest.raises(ArgumentError):
        report.html_table(headers, rows, "caption")


def test_a_table_may_have_no_rows() -> None:
    assert report.text_table(["a", "bc"], []) == "a  bc\n-  --"


def test_percent() -> None:
    assert [report.percent(0.953), report.percent(1, 0), report.percent(0.00049, 2)] == ["95.3 %", "100 %", "0.05 %"]


# the page


class Reader(HTMLParser):
    """Collects every tag, every reference to another resource, and the text; checks that tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.references: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(title: str = "Title", subtitle: str = "Subtitle", *sections: Section) -> Reader:
    reader = Reader()
    reader.feed(report.page(title, subtitle, sections))
    reader.close()
    assert reader.open == []
    return reader


def test_page_is_self_contained_and_well_formed() -> None:
    chart = report.line_chart([Series("DPA", [0, 1], [0.9, 0.8])], title="t", x_label="x", y_label="y")
    reader = read_page(
        "A page",
        "of everything",
        Section("", [report.cards([Headline("95 % → 3 %", "attack success", "undefended → DPA"), Headline("1", "b")])]),
        Section(
            "Figures",
            ["Two of them.", report.figure(chart, "a"), report.figure(report.png(random_images(3, 4, 5)), "b")],
        ),
        Section("Table", [report.html_table(HEADERS, ROWS, "caption"), report.details("Manifest", '{"seed": 0}')]),
    )
    assert all(reference.startswith("data:") for reference in reader.references)
    assert len(reader.references) == 2, "the icon and the picture"
    assert "script" not in reader.tags
    assert [reader.tags.count(tag) for tag in ("h1", "h2", "section", "figure", "svg", "img", "details")] == [
        1,
        2,
        3,
        2,
        1,
        1,
        1,
    ]
    assert '{"seed": 0}' in reader.text
    page = report.page("A page", "", [])
    assert "@import" not in page
    assert "url(" not in page


def test_page_escapes_all_text() -> None:
    reader = read_page(
        EVIL,
        EVIL,
        Section(
            EVIL,
            [
                EVIL,
                report.cards([Headline(EVIL, EVIL, EVIL)]),
                report.figure(report.png(random_images(2, 2)), EVIL),
                report.code(EVIL),
                report.details(EVIL, EVIL),
            ],
        ),
    )
    assert "script" not in reader.tags
    assert reader.text.count(EVIL) == 12


def test_only_html_is_trusted() -> None:
    block = report.code("x")
    assert "pre" in read_page("t", "s", Section("", [block])).tags
    assert "pre" not in read_page("t", "s", Section("", [f"{block}", block + "!"])).tags


def test_figure_of_a_png_says_its_size_and_takes_nothing_else() -> None:
    assert 'width="5" height="4"' in report.figure(report.png(random_images(3, 4, 5)), "caption")
    with pytest.raises(ArgumentError, match="content must be a PNG file or a chart"):
        report.figure(b"GIF89a", "caption")


def test_the_same_values_make_the_same_page() -> None:
    def make() -> str:
        picture = report.figure(report.png(report.picture_grid([random_images(2, 1, 8, 8)])), "digits")
        return report.page("t", "s", [Section("a", [picture])])

    assert make() == make()

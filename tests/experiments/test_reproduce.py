"""Reproductions: the paper's numbers as printed, ours beside them, sizes on paper, pages that say what is missing."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from poisonkit.__main__ import main
from poisonkit.data import load
from poisonkit.engine import Local, Progress, Run
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.reproduce import REPRODUCTIONS, SCALES
from poisonkit.experiments.reproduce import dpa as reproduce_dpa
from poisonkit.experiments.reproduce import dpa_paper as paper
from poisonkit.experiments.reproduce.page import grids, html, markdown, show
from poisonkit.experiments.reproduce.registry import Part, Training, slope
from poisonkit.experiments.reproduce.results import beside, read
from poisonkit.experiments.reproduce.sizes import SHAPES, TERAFLOPS, size
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Recipe

DOCS = Path(__file__).parents[2] / "docs"
IMAGENET64 = SHAPES["imagenet64"]
DPA = [*(f"dpa/table{n}" for n in range(2, 7)), "dpa/figure1"]


def part(parts: list[Part], title: str) -> Part:
    [found] = [each for each in parts if each.title == title]
    return found


def test_names_are_tables_and_figures_of_papers() -> None:
    assert [name for name in REPRODUCTIONS if name.startswith("dpa/")] == DPA
    for name, entry in REPRODUCTIONS.items():
        assert re.fullmatch(r"[a-z-]+/((table|figure)\d+|lemma[\d.]+)", name)
        assert list(entry.scales) == list(SCALES)
        assert re.search(r"arXiv \d{4}\.\d{5}|https://proceedings", entry.source)
        assert all(row.keys() <= each.kinds.keys() for each in entry.paper for row in each.numbers.values())


# The differences that the paper prints beside its numbers, in points; Table 5's k=9 acc@5 is off by 0.02 in print
@pytest.mark.parametrize(
    ("parts", "title", "low", "high", "printed"),
    [
        (paper.TABLE4, "Accuracy", "DPA, k = 3", paper.BASELINE, [16.61, 17.19, 16.17, 13.93, 11.02, 7.22, 4.33]),
        (paper.TABLE4, "Accuracy", "DPA, k = 16", paper.BASELINE, [34.24, 38.99, 38.46, 35.29, 29.96, 20.89, 13.86]),
        (paper.TABLE5, "Accuracy", paper.base(4), "DPA, k = 4", [8.04, 10.48, 11.01, 11.54, 10.76, 8.59, 6.24]),
        (paper.TABLE5, "Accuracy", paper.base(7), "DPA, k = 7", [7.40, 10.74, 11.56, 12.36, 11.87, 9.72, 7.52]),
        (paper.TABLE5, "Accuracy", paper.base(16), "DPA, k = 16", [7.36, 11.57, 12.97, 14.53, 14.95, 13.48, 10.90]),
        (
            paper.TABLE6,
            paper.counted(paper.LARGE),
            "DPA, k = 16",
            paper.BASELINE,
            [47.76, 28.51, 11.54, 1.02, 0.49, 0.15],
        ),
        (
            paper.TABLE6,
            paper.counted(paper.LARGE),
            "DPA, k = 9",
            paper.BASELINE,
            [19.63, 20.65, 6.34, 1.03, 0.57, 0.15],
        ),
        (
            paper.TABLE6,
            paper.counted(paper.DOT),
            "DPA, k = 7",
            paper.BASELINE,
            [-0.12, -0.14, -0.15, 0.13, 65.45, 51.81],
        ),
        (
            paper.TABLE6,
            paper.counted(paper.DOT),
            "DPA, k = 16",
            paper.BASELINE,
            [-0.12, -0.09, -0.11, 0.32, 67.01, 78.76],
        ),
    ],
)
def test_numbers_of_the_paper_differ_as_it_says(
    parts: list[Part], title: str, low: str, high: str, printed: list[float]
) -> None:
    numbers = part(parts, title).numbers
    found = [100 * (numbers[high][column] - numbers[low][column]) for column in numbers[high]]
    assert found == pytest.approx(printed, abs=0.006)


def test_ratios_of_the_paper() -> None:
    inference = part(paper.TABLE2, "Inference time over that of one model").numbers
    assert inference["DPA, k = 16"]["batches of 512"] == pytest.approx(5.73, abs=0.005)
    training = part(paper.TABLE2, "Training time over that of one model").numbers
    assert training["DPA, k = 16"]["training, all"] == pytest.approx(0.55, abs=0.005)


def test_the_size_of_the_paper() -> None:
    """Against multiply-adds counted elsewhere, and the hours between two rows of its Table 3."""
    shape, classes, rows = IMAGENET64
    wide = Recipe(model=ResNet(50, 128), batch_size=512)
    one = size([Training(1, rows, wide)], shape, classes, rows)
    assert one.multiply_adds == 3 * 1_319_403_520 * rows * 20
    assert one.disk_bytes == 4 * (98_004_072)
    assert one.hours == one.hours_on_8
    half = size([Training(1, rows, replace(wide, model=ResNet(50, 64)))], shape, classes, rows)
    assert one.hours - half.hours == pytest.approx(5.3 - 3.4, rel=0.02)  # the rate is from the two wider rows
    narrow = Training(16, rows / 16, replace(wide, model=ResNet(50, 32)))
    many = size([narrow], shape, classes, rows)
    assert many.networks == 16
    assert many.multiply_adds == pytest.approx(3 * 86_843_392 * rows * 20)
    assert many.hours_on_8 == pytest.approx(many.hours / 8)
    twice = size([narrow], shape, classes, rows, teraflops=2 * TERAFLOPS)
    assert twice.hours == pytest.approx(many.hours / 2)
    assert rows * 12288 < many.gpu_bytes < half.gpu_bytes < one.gpu_bytes < 40e9


def test_a_slope_is_an_exponent() -> None:
    assert slope([8, 16, 32], [3 * 8**2, 3 * 16**2, 3 * 32**2]) == pytest.approx(2)
    assert slope([1, 10], [5, 5]) == pytest.approx(0)


def test_columns_of_both_of_ours_and_of_the_paper_stand_apart() -> None:
    entry = replace(
        REPRODUCTIONS["dpa/table4"],
        paper=[Part("P", {"both": "share", "theirs": "share"}, {"a": {"both": 0.5, "theirs": 0.1}})],
    )
    rows = beside(
        entry,
        [Part("P", {"both": "share", "ours": "seconds"}, {"a": {"both": 0.25, "ours": 90.0}, "b": {"both": 0.75}})],
    )
    assert grids(rows) == [
        ("P", ["", "both", "both, paper"], [["a", "25.00 %", "50.00 %"], ["b", "75.00 %", "–"]]),
        ("P, here", ["", "ours"], [["a", "90.0 s"]]),
        ("P, the paper's, not run here", ["", "theirs"], [["a", "10.00 %"]]),
    ]


@pytest.mark.parametrize(
    ("kind", "value", "cell"),
    [
        ("share", 0.5253, "52.53 %"),
        ("ratio", 5.727, "5.73×"),
        ("seconds", 5.3 * 3600, "5.3 h"),
        ("seconds", 3600, "1.0 h"),
        ("seconds", 2880, "48.0 min"),
        ("number", 2.0, "2.00"),
        ("seconds", 77.9, "77.9 s"),
        ("seconds", 0.256, "0.26 s"),
        ("share", None, "–"),
    ],
)
def test_numbers_as_cells(kind: str, value: float | None, cell: str) -> None:
    assert show(kind, value) == cell


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke scale, smaller still."""
    smoke = reproduce_dpa.SCALES["smoke"]
    recipe = replace(smoke.recipe, epochs=1, model=replace(smoke.recipe.model, width=4))
    setting = replace(smoke, limit=60, recipe=recipe, partitions=(3, 4), rates=(0.1,), widths=(2, 4, 8))
    monkeypatch.setitem(reproduce_dpa.SCALES, "smoke", setting)


@pytest.mark.usefixtures("tiny")
def test_all_of_a_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--threads", "1", "--out", str(tmp_path)]
    assert main(["reproduce", "dpa/table4", *out]) == 0
    models = len(list(tmp_path.rglob("model.safetensors")))
    assert models == 1 + 3 + 4
    page = (tmp_path / "report.html").read_text()
    assert "dpa/table6 at smoke" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert main(["reproduce", "dpa/table2", "dpa/table5", *out]) == 0
    assert len(list(tmp_path.rglob("model.safetensors"))) == models  # they read what table4 trained
    assert main(["reproduce", "dpa", *out]) == 0
    results = read(tmp_path, list(REPRODUCTIONS), SCALES)
    assert {name for name, _ in results} == set(DPA)
    for (name, _), result in results.items():
        about = result.about
        assert (about["name"], about["scale"], about["seeds"], about["training_images"]) == (name, "smoke", [0], 60)
        assert re.match(r"(poisonkit \d|[0-9a-f]{10}( \+ changes)?$)", about["commit"])
        assert re.match(r"\d{4}-\d\d-\d\d$", about["date"])
        assert about["config"]["recipe"]["model"]["width"] == 4
        assert any(row["ours"] is not None for row in result.rows)
        assert all(row["ours"] is not None or row["paper"] is not None for row in result.rows)
    rows = {(row["part"], row["row"], row["column"]): row for row in results["dpa/table4", "smoke"].rows}
    assert rows["Accuracy", "DPA, k = 3", "acc@1"]["paper"] == 0.3592
    assert 0 <= rows["Accuracy", "DPA, k = 3", "acc@1"]["ours"] <= rows["Accuracy", "DPA, k = 3", "acc@5"]["ours"] <= 1
    assert rows["Accuracy", "DPA, k = 16", "acc@1"]["ours"] is None
    six = {row["part"] for row in results["dpa/table6", "smoke"].rows if row["ours"] is not None}
    assert six == {title(patch) for title in (paper.counted, paper.others) for patch in (paper.LARGE, paper.DOT)}
    text = (tmp_path / "results.md").read_text()
    assert text == markdown(REPRODUCTIONS, results)
    assert text.count("Not run yet.") == 3 * len(REPRODUCTIONS) - len(DPA)  # at the other scales, and other papers
    assert "svg" in html(REPRODUCTIONS, results)


@pytest.mark.usefixtures("tiny")
def test_overwriting_starts_the_shared_run_afresh_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: REPRODUCTIONS[name] for name in DPA[:2]}
    monkeypatch.setattr("poisonkit.commands.reproduce.REPRODUCTIONS", few)
    arguments = ["reproduce", "dpa", "--threads", "1", "--out", str(tmp_path)]
    assert main(arguments) == 0
    models = sorted(tmp_path.rglob("model.safetensors"))
    before, opened = [model.stat().st_mtime_ns for model in models], []

    def open_run(*of: Any, overwrite: bool) -> Run:
        opened.append(overwrite)
        return Run(*of, overwrite=overwrite)

    monkeypatch.setattr("poisonkit.commands.reproduce.Run", open_run)
    assert main([*arguments, "--overwrite"]) == 0
    assert opened == [True, False]
    assert all(model.stat().st_mtime_ns > time for model, time in zip(models, before, strict=True))


def test_processes_share_the_squares_and_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process is at comes last, and is waited for."""
    setting = replace(reproduce_dpa.SCALES["smoke"], rates=(0.1, 0.2), partitions=())
    train, test = (part.take(torch.arange(20)) for part in load("digits"))
    lab = Lab(Run(tmp_path / "run", {}), train, test, setting.recipe, key(0), Local(), Progress())
    begun: list[tuple[int, float]] = []
    held, others_done = Event(), Event()

    def attacked(lab: Lab, setting: object, patch: int, rate: float) -> dict[str, tuple[float, float]]:
        begun.append((patch, rate))
        if len(begun) == 3:
            others_done.set()
        return {paper.BASELINE: (rate, patch)}

    def another() -> None:
        with Run(tmp_path / "run", {}).lock("square-08/rate-0.100000"):
            held.set()
            assert others_done.wait(20)

    monkeypatch.setattr(reproduce_dpa, "_attacked", attacked)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(another)
        assert held.wait(20)
        parts = reproduce_dpa.table6(lab, setting)
        other.result()
    assert begun == [(8, 0.2), (4, 0.1), (4, 0.2), (8, 0.1)]
    large = part(parts, paper.counted(paper.LARGE)).numbers
    assert large == {paper.BASELINE: {"10 % (2 rows)": 0.1, "20 % (4 rows)": 0.2}}


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == list(REPRODUCTIONS)


def test_the_plan_needs_no_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["reproduce", "dpa/table6", "--scale", "paper", "--dry-run", "--out", str(tmp_path / "x")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^dpa/table6 +imagenet64, 1,281,167 rows +480 +2\.33e\+18 +58\.1 h +7\.3 h", shown, re.MULTILINE)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dpa/table9"], "name must be one of .*dpa, .*dpa/table2, .*got dpa/table9"),
        (["--scale", "huge"], "invalid choice: 'huge'"),
        (
            ["dpa/table4", "--overwrite"],
            "--overwrite must be with dpa/table2, .*dpa/figure1 too, .*got dpa/table4; ",
        ),
        (["dpa", "--recipe.epochs", "3"], "arguments must be those that --help lists"),
        (["dpa", "--scale", "paper"], "root must be the folder that holds imagenet64, got None"),
    ],
)
def test_what_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "x")]) == 2
    assert re.match(f"poisonkit: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "x").exists()


def test_the_docs_are_made_from_results() -> None:
    results = read(DOCS / "results", list(REPRODUCTIONS), SCALES)
    assert results
    assert (DOCS / "results.md").read_text() == markdown(REPRODUCTIONS, results)


def test_a_file_that_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "smoke" / "dpa" / "table2.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"name": "dpa/table2"}))
    with pytest.raises(Exception, match="must be written by `poisonkit reproduce`"):
        read(tmp_path, list(REPRODUCTIONS), SCALES)

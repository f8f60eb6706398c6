"""The benchmarks' bookkeeping: rows, goals, the command line and the GPU script, without measuring anything."""

import csv
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import __main__ as command_line
from bench import gpu, imagenet64, measure, papers, peers, rows, triggers
from bench.goals import GOALS, Goal, standings
from bench.measure import interleave, speedup
from bench.place import Place, sections
from bench.rows import Machine, Row

ROOT = Path(__file__).parents[1]
GPU_SCRIPT = ROOT / "bench" / "gpu.sh"
ROW = Row(
    name="op/fast/quantity",
    value=0.5,
    unit="ratio",
    goal=0.4,
    better="higher",
    commit="0" * 40,
    dirty=False,
    command="python -m bench op",
    machine=Machine(cpu="a cpu", cores=2, isa=("scalar", "avx2"), gpu="", python="3.11", torch="2.10", load=0.5),
    date="2026-01-02",
    samples=9,
    note="",
)


def test_rows_survive_their_file(tmp_path):
    path = tmp_path / "cpu" / "machine.json"
    other = dataclasses.replace(ROW, name="op/other", goal=None)
    rows.write(path, [ROW, other])
    assert list(rows.read(tmp_path)) == [(path, ROW), (path, other)]


def test_a_second_run_replaces_rows_of_the_same_name_only(tmp_path):
    path = tmp_path / "machine.json"
    other = dataclasses.replace(ROW, name="op/other")
    again = dataclasses.replace(ROW, value=0.6)
    rows.write(path, [ROW, other])
    rows.write(path, [again])
    assert [row for _, row in rows.read(tmp_path)] == [again, other]
    assert [file.name for file in tmp_path.iterdir()] == ["machine.json"]


@pytest.mark.parametrize(
    ("better", "value", "status"),
    [("higher", 0.5, "met"), ("higher", 0.49, "unmet"), ("lower", 0.5, "met"), ("lower", 0.51, "unmet")],
)
def test_a_goal_is_met_or_unmet(better, value, status):
    goals = {ROW.name: Goal(0.5, "any CPU", better)}
    found = list(standings([(Path("machine.json"), dataclasses.replace(ROW, value=value))], goals))
    assert [(standing.status, standing.where) for standing in found] == [(status, "machine")]


def test_a_goal_without_a_row_is_not_measured_and_says_what_it_needs():
    (found,) = standings([], {"op/gpu": Goal(1, "a CUDA device")})
    assert (found.status, found.where) == ("not measured", "needs a CUDA device")


def test_the_latest_row_of_a_machine_counts_and_machines_count_apart():
    old, new = (
        dataclasses.replace(ROW, date=date, value=value) for date, value in [("2026-01-01", 0), ("2026-02-01", 1)]
    )
    gpus = [dataclasses.replace(row, machine=dataclasses.replace(ROW.machine, gpu="a gpu")) for row in (new, old)]
    found = standings(
        [(Path("new-gpu.json"), gpus[0]), (Path("old-gpu.json"), gpus[1]), (Path("cpu.json"), old)],
        {ROW.name: Goal(0.5, "")},
    )
    assert sorted((standing.where, standing.status) for standing in found) == [("cpu", "unmet"), ("new-gpu", "met")]


@pytest.mark.parametrize(("value", "status"), [(1e9, 0), (0, 1)])
def test_check_fails_only_if_a_measured_goal_is_unmet(value, status, capsys):
    name = next(iter(GOALS))
    assert command_line.check([(Path("machine.json"), dataclasses.replace(ROW, name=name, value=value))]) == status
    printed = capsys.readouterr().out
    assert all(name in printed for name in GOALS)
    assert f"{len(GOALS)} goals: {status} measured and unmet, {len(GOALS) - 1} not measured" in printed


def test_list_covers_every_op(capsys):
    from poisonkit.ops import OPS

    assert command_line.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert OPS
    assert all(name in printed for name in OPS)


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["nothing"])
    assert "no CPU bench of nothing" in capsys.readouterr().err


def test_a_bench_that_fills_a_disk_runs_only_when_named(monkeypatch):
    ran = []
    for name in command_line.CPU:
        monkeypatch.setitem(command_line.CPU, name, lambda name=name: ran.append(name))
    monkeypatch.setattr(command_line, "keep", lambda measured: None)
    command_line.main([])
    assert ran
    assert not set(ran) & command_line.LARGE
    ran.clear()
    command_line.main([*command_line.LARGE])
    assert set(ran) == command_line.LARGE


def test_imagenet64_measures_its_goals_and_cleans_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    measured = {row.name for row in imagenet64.bench(train=1000, val=20)}
    assert {name for name in GOALS if name.startswith("imagenet64/")} <= measured
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["publish", "convert", "partition"])
def test_imagenet64_cleans_up_after_a_failure(part, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(imagenet64, part, lambda *_, **__: (tmp_path / "nothing").unlink())
    with pytest.raises(FileNotFoundError):
        list(imagenet64.bench(train=500, val=20))
    assert not list(tmp_path.iterdir())


def test_imagenet64_asks_for_room_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=34e9))
    with pytest.raises(SystemExit, match="TMPDIR must have 35 GB of free disk, got 34 in"):
        next(imagenet64.bench())
    assert not list(tmp_path.iterdir())


def test_the_table_in_the_docs_is_the_one_the_results_give():
    page = command_line.DOCS.read_text()
    assert page == command_line.with_table(page, rows.read())


def test_candidates_take_turns_and_ratios_compare_turns():
    seconds = iter([9, 9, 2, 4, 1, 4, 2, 6])
    ran = []
    candidates = {name: lambda name=name: ran.append(name) for name in ("fast", "slow")}
    times = interleave(candidates, 3, lambda run: run() or next(seconds))
    assert ran == ["fast", "slow"] * 4
    assert times == {"fast": [2, 1, 2], "slow": [4, 4, 6]}
    assert speedup(times, "fast", over="slow") == 3


def test_the_triggers_are_compared_with_the_same_image_by_image():
    names = {each.name for each in triggers.bench(count=40, rounds=1)}
    assert {name for name in GOALS if name.startswith("triggers/")} < names


def test_gpu_script_parses():
    subprocess.run(["bash", "-n", GPU_SCRIPT], check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_gpu_script_says_so_where_there_is_no_gpu():
    before = sorted(rows.RESULTS.rglob("*"))
    run = subprocess.run(
        [GPU_SCRIPT, "ops"], env=os.environ | {"PYTHON": sys.executable}, check=True, capture_output=True, text=True
    )
    assert run.stdout == "bench/gpu.sh: no CUDA device; nothing was measured\n"
    assert command_line.main(["--gpu", "ops"]) == 0
    assert sorted(rows.RESULTS.rglob("*")) == before


def test_rows_are_kept_as_they_come(tmp_path, monkeypatch):
    def measured():
        yield ROW
        raise RuntimeError("cut off")

    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    with pytest.raises(RuntimeError, match="cut off"):
        command_line.keep(measured())
    assert [row for _, row in rows.read(tmp_path)] == [ROW]


def test_a_section_that_fails_leaves_the_others_to_run(tmp_path, capsys):
    def good(place):
        yield ROW

    def bad(place):
        yield from ()
        raise ValueError("no such kernel")

    found = sections(Place(torch.device("cpu"), tmp_path, small=True), (bad, good))
    assert next(found) == ROW
    with pytest.raises(SystemExit, match="failed: bad"):
        next(found)
    assert "no such kernel" in capsys.readouterr().err


def test_a_run_that_was_cut_off_goes_on_in_its_folder(tmp_path):
    place = Place(torch.device("cpu"), tmp_path, small=True)

    def killed() -> None:
        with papers.whole(place, "epic/cpu/digits", "a note") as (folder, _):
            folder.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert list(tmp_path.iterdir())
    with papers.whole(place, "epic/cpu/digits", "a note") as (folder, found):
        pass
    assert [(row.name, row.note) for row in found] == [("epic/cpu/digits/wall", "a note; from where it was cut off")]
    assert not folder.exists()


# Of a paper: what is measured of the network without the defense, and of the defenses
PAPERS = {"epic": ("epic",), "ieu": ("ieu",), "rdm-dc": ("rdm_dc", "dm"), "mmac": ("mmac",)}
FIGURES = ("train", "clean_accuracy", "attack_success_rate")


@pytest.mark.parametrize("part", PAPERS)
def test_a_paper_is_measured_from_end_to_end(part, tmp_path):
    measured = {row.name: row for row in gpu.PARTS[part](Place(torch.device("cpu"), tmp_path, small=True))}
    name = f"{part}/cpu/digits"
    wanted = {f"{name}/{which}/{figure}" for which in ("undefended", *PAPERS[part]) for figure in FIGURES}
    wanted |= {f"{name}/{which}/of_undefended" for which in PAPERS[part]}
    wanted |= {f"{name}/{quantity}" for quantity in ("images", "ops", "wall")}
    extra = "pretraining" if part == "ieu" else "poison"
    assert set(measured) == wanted | {f"{name}/{extra}"}
    assert all(0 <= row.value <= 1 for row in measured.values() if row.unit == "share")
    assert (measured[f"{name}/ops"].value > 0) == (part != "ieu")  # which has no op of ours
    assert all(row.value > 0 for row in measured.values() if row.unit in ("s", "1/s"))
    assert not list(tmp_path.iterdir())


def without_sizes(name):
    return re.sub(r"\d+", "#", name).replace("/cuda/", "/cpu/")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["ops", "dpa"])
def test_the_other_parts_measure_the_goals_of_a_gpu_and_every_op(part, tmp_path):
    from poisonkit.ops import OPS

    measured = [row.name for row in gpu.PARTS[part](Place(torch.device("cpu"), tmp_path, small=True))]
    goals = {name for name in GOALS if "/cuda/" in name and name.startswith("stacked/") == (part == "dpa")}
    assert goals
    assert set(map(without_sizes, goals)) <= set(map(without_sizes, measured))
    if part == "ops":
        called = {"greedy_medoids": "facility_location", "calibrate": "calibrated_mean"}
        forward = {called.get(op, op) for op in OPS if not op.endswith("_backward")}
        assert forward <= {name.split("/")[0] for name in measured}
    else:
        wanted = {f"dpa/cpu/digits/{which}/{figure}" for which in ("undefended", "dpa") for figure in FIGURES}
        assert wanted < set(measured)
    assert not list(tmp_path.iterdir())


def contest(**changed):
    fields = {"ours": lambda: 3, "peers": {"slow": lambda: 3}, "same": peers.equal, "note": "a note"}
    return peers.Contest("adding/2x3", **{**fields, **changed})


def test_a_peer_is_compared_before_it_is_timed():
    with pytest.raises(AssertionError, match="slow"):
        next(peers.measured(contest(ours=lambda: 4, peers={"slow": lambda: 3}), 1))


def test_peers_become_a_table_and_a_page(tmp_path):
    clocks = {"ours": lambda: 0.25, "slow": lambda: 0.5}
    measured = list(peers.measured(contest(clocks=clocks), 3))
    assert [(row.name, row.value) for row in measured if not row.name.endswith("memory")] == [
        ("peers/adding/2x3/ours/time", 0.25),
        ("peers/adding/2x3/slow/time", 0.5),
        ("peers/adding/2x3/slow/ratio", 2.0),
    ]
    ours, slow = peers.table([ROW, *measured])
    assert (ours[:4], slow[:4]) == (["adding/2x3", "ours", 0.25, 1.0], ["adding/2x3", "slow", 0.5, 2.0])
    page = peers.publish(tmp_path, measured).read_text()
    assert page.count("<svg") == 2
    assert "poisonkit" in page
    with (tmp_path / "peers.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["who"] for line in lines] == ["ours", "slow"]
    assert all(line["machine"] and line["torch"] for line in lines)


def test_memory_is_what_a_run_reaches():
    assert 30 < measure.peak_memory(lambda: torch.ones(10 << 20)) < 60  # 42 MB


@pytest.mark.slow
def test_every_peer_that_is_here_does_the_same_work(capsys):
    measured = {row.name for row in peers.bench(small=True)}
    missing = re.findall(r"^(\w+): \w+ is not installed$", capsys.readouterr().err, re.MULTILINE)
    ops = {"weighted_sum_hash", "clipped_relu", "calibrated_mean", "facility_location"}
    pipelines = {"spectral_signatures", "activation_clustering", "dp_sgd", "dpa"}
    assert len({name.split("/")[1] for name in measured} & (ops | pipelines)) == 8 - len(missing)
    assert {name.split("/")[1] for name in measured} >= ops - {"weighted_sum_hash", "facility_location"}

"""The command line: what it prints, what it writes, and one line with exit status 2 where something is wrong."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import poisonkit as pk
import poisonkit.report
from poisonkit import ops
from poisonkit.__main__ import main
from poisonkit.attacks import ATTACKS
from poisonkit.commands import arrays
from poisonkit.data import DATASETS
from poisonkit.data.files import sha256
from poisonkit.defenses import DEFENSES
from poisonkit.experiments import EXPERIMENTS
from poisonkit.train.checkpoints import load_tensors, save_tensors

SMALL = [
    *["--data", "digits", "--attack", "badnets_white", "--attack.size", "1", "--rate", "0.05"],
    *["--defense", "dpa", "--defense.partitions", "3", "--limit", "120", "--seed", "7"],
    *["--recipe.model.width", "8", "--recipe.epochs=1", "--stack", "2"],
]


def test_run_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", *SMALL, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^dpa +\d+\.\d %", shown, re.MULTILINE)
    rows = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in rows] == ["undefended", "base model (1/3 of data)", "dpa"]
    assert rows[2]["certified"]["1"][-1] == 0  # to the first radius that no image has
    assert rows[2]["certified"]["1"][0] == rows[2]["clean_accuracy"] == rows[2]["guesses"]["1"]
    assert rows[2]["certified"]["3"][0] == rows[2]["guesses"]["3"] >= rows[2]["guesses"]["1"]
    sheet = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    assert float(sheet[2]["clean_accuracy"]) == rows[2]["clean_accuracy"]
    assert float(sheet[2]["certified acc@3 r=1"]) == rows[2]["certified"]["3"][1]
    assert sheet[0]["certified acc@1 r=0"] == ""
    plan = json.loads((out / "manifest.json").read_text())["plan"]
    assert (plan["attack"]["size"], plan["recipe"]["model"]["width"], plan["seed"]) == (1, 8, 7)
    page = (out / "report.html").read_text()
    assert "base model (1/3 of data)" in page
    assert "Hash collisions between different rows: 0." in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert (out / "figures" / "poisoned.png").read_bytes().startswith(b"\x89PNG")
    for name, ids in {"undefended": [0], "dpa/stack-0000": [0, 1], "dpa/base-0002": [2]}.items():
        lines = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
        assert [(line["number"], line["id"]) for line in lines] == [(1, i) for i in ids]
    # again: nothing is trained, the same table
    assert main(["run", *SMALL, "--out", str(out)]) == 0
    assert capsys.readouterr().out == shown


def test_the_ensemble_of_a_run_can_be_used(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["run", *SMALL, "--out", str(out)]) == 0
    ensemble = pk.engine.load_ensemble(out)
    _, test = pk.data.load("digits")
    test = test.take(torch.arange(120) * 360 // 120)
    accuracy = json.loads((out / "results.json").read_text())[2]["clean_accuracy"]
    assert pk.metrics.clean_accuracy(ensemble, test) == accuracy
    assert torch.equal(ensemble.guesses(test.images, 1)[:, 0], ensemble.predict(test.images))
    within = ensemble.certify_top(test.images, test.labels, 1)
    assert float((within >= 0).double().mean()) == accuracy
    (out / "dpa" / "base-0001" / "model.safetensors").unlink()
    with pytest.raises(pk.PoisonkitError, match="models must be"):
        pk.engine.load_ensemble(out)


def test_a_run_is_never_taken_up_with_another_poison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", *SMALL, "--out", str(out)]) == 0
    kept = load_tensors(out / "poison.safetensors")
    kept["images"][0] ^= 1  # as another trigger would have left them
    save_tensors(out / "poison.safetensors", kept)
    (out / "poison.json").write_text(json.dumps({"sha256": sha256(out / "poison.safetensors")}))
    before = (out / "results.json").read_bytes()
    assert main(["run", *SMALL, "--out", str(out)]) == 2
    assert "the poison of" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before


def test_what_cannot_be_compared_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    for option in (["--defense.order", "0,1,2"], ["--attack.size", "9"], ["--attack.target", "10"]):
        assert main(["run", *SMALL, *option, "--out", str(out)]) == 2
        assert not out.exists()
    one_class = tmp_path / "faces" / "train" / "a", tmp_path / "faces" / "test" / "a"
    for folder in one_class:
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes(pk.report.png(torch.zeros(8, 8, dtype=torch.uint8)))
    assert main(["run", "--data", "folder", "--root", str(tmp_path / "faces"), "--out", str(out)]) == 2
    assert "num_classes must be at least 2" in capsys.readouterr().err
    assert not out.exists()


def test_a_model_may_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--data", "cifar10", "--recipe.model", "resnet50", "--recipe.model.width=32", "--dry-run"]) == 0
    model = json.loads(capsys.readouterr().out)["recipe"]["model"]
    assert (model["depth"], model["width"]) == (50, 32)


def test_run_without_attack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    clean = ["run", "--data", "digits", "--attack", "none", "--defense.partitions", "1", "--limit", "40"]
    assert main([*clean, "--recipe.model.width", "8", "--recipe.epochs", "1", "--out", str(out)]) == 0
    assert "attack success" not in capsys.readouterr().out
    assert not (out / "poison.safetensors").exists()


def test_run_with_other_arguments_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["run", *SMALL, *out]) == 0
    capsys.readouterr()
    assert main(["run", *SMALL, "--seed", "8", *out]) == 2
    error = capsys.readouterr().err
    assert re.match(r"poisonkit: plan.seed of the run in .* must be 7, as it was started, got 8; .*--overwrite", error)
    assert main(["run", *SMALL, "--seed", "8", *out, "--overwrite"]) == 0


def test_dry_run_needs_no_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "--data", "imagenet64", "--root", str(tmp_path / "none"), "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recipe"]["model"] == {
        "class": "ResNet",
        "depth": 50,
        "width": 128,
        "scaling": "all",
        "stem": "imagenet",
        "dropout": 0.0,
    }
    assert not (tmp_path / "none").exists()


def test_options_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--data", "cifar10", "--options"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"--defense.partitions +16", shown)
    assert re.search(r"--recipe.schedule.peak +0.2", shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["walk"], "invalid choice: 'walk'"),
        (["run"], "the following arguments are required: --data"),
        (["run", "--data", "mnist"], "invalid choice: 'mnist'"),
        (["run", "--data", "digits", "--attack", "magic"], "invalid choice: 'magic'"),
        (["run", "--data", "digits", "--rate", "2"], r"--rate must be a fraction in \[0, 1\], got 2.0"),
        (["run", "--data", "digits", "--rate", "much"], "invalid float value: 'much'"),
        (["run", "--data", "digits", "--limit", "0"], "--limit must be at least 1 row, got 0"),
        (["run", "--data", "digits", "--defense.partitions", "0"], "partitions must be at least 1, got 0"),
        (["run", "--data", "digits", "--defense.k", "3"], "an option below --defense must be one of .*got --defense.k"),
        (["run", "--data", "digits", "--attack.target", "10"], r"target must be a class in \[0, 10\), got 10"),
        (["run", "--data", "digits", "--attack.size", "9"], "size must be at most the image's 8x8, got 9"),
        (["run", "--data", "digits", "--attack.size"], "options must be of the form --option value"),
        (["run", "--data", "digits", "--speed", "3"], "an option must be one of .*, got --speed"),
        (["run", "--data", "digits", "--device", "abacus"], "--device must be cpu, cuda or cuda:N, got abacus"),
        (["run", "--data", "digits", "--seed", "-1"], r"seed must be in \[0, 2\^64\), got -1"),
        (["run", "--data", "cifar10", "--root", "/nowhere"], "/nowhere"),
        (["run", "--data", "cifar10"], "root"),
        (["run", "--data", "digits", "--device", "meta"], "--device must be cpu, cuda or cuda:N, got meta"),
        (
            ["run", "--data", "digits", "--device", "cuda:99", "--limit", "50"],
            "--device must be one of",
        ),
        (["run", "--data", "digits", "--stack", "0"], "--stack must be auto, or 1 or more, got 0"),
        (["run", "--data", "digits", "--stack", "all"], "--stack must be auto, or 1 or more, got all"),
        (["run", "--data", "digits", "--stack", "1", "--only", "16"], "--only must be .* numbers below 16 .*got .16"),
        (["run", "--data", "digits", "--stack", "1", "--only", "3-1"], "--only must be .*got '3-1'"),
        (["run", "--data", "digits", "--stack", "1", "--only", "1,,2"], "--only must be .*got ''"),
        (["run", "--data", "digits", "--only", "-1"], "--only"),
        (["run", "--data", "digits", "--only", "1", "--overwrite"], "--only must be without --overwrite"),
        (["run", "--data", "digits", "--print-job", "slurm"], "--threads must be 1 or more with --print-job, got None"),
        (["run", "--data", "digits", "--print-job", "pbs"], "invalid choice: 'pbs'"),
        (
            ["run", "--data", "digits", "--print-job", "slurm", "--threads", "1", "--only", "1"],
            "--print-job must be without --only",
        ),
        (["run", "--data", "digits", "--threads", "1000000"], "--threads must be from 1 to this machine's"),
        (["run", "--data", "digits", "--limit", "50", "--out", "/dev/null"], "run directory must be"),
        (["hash", "/nowhere"], "FILE must be a file, got /nowhere"),
        (["hash", "--seed", "-1", "/dev/null"], "must be"),
        (["list", "--fast"], "arguments must be those that --help lists, got --fast"),
        (["convert", "/nowhere", "/tmp/x"], "/nowhere"),
        (["dpa"], "the following arguments are required: STUDY"),
        (["dpa", "advise"], "the following arguments are required: --data"),
        (["dpa", "family", "--data", "digits", "--limit", "0"], "--limit must be at least 1 row, got 0"),
        (["dpa", "update", "/nowhere", "--data", "digits"], "run directory must be .*got /nowhere"),
        (["reproduce", "table2"], "name must be one of dpa, .*got table2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert re.match(f"poisonkit: .*{message}", captured.err), captured.err
    assert "Traceback" not in captured.err


ARRAY = [
    *["run", "--data", "digits", "--defense.partitions", "10"],
    *["--stack", "4", "--threads", "1", "--out", "my runs/1"],
]


@pytest.mark.parametrize("option", [["--print-job", "slurm"], ["--print-job=kubernetes"]])
def test_each_element_of_a_printed_array_trains_a_unit(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARRAY[:3], *option, *ARRAY[3:]]) == 0
    script, index, count = capsys.readouterr().out, "SLURM_ARRAY_TASK_ID", 4
    if "slurm" in option:
        assert script.startswith("#!/bin/bash\n#SBATCH")
        assert f"#SBATCH --array=0-{count - 1}\n" in script
        assert "#SBATCH --cpus-per-task=1\n" in script
    else:
        spec = pytest.importorskip("yaml", reason="ray is not installed").safe_load(script)["spec"]
        assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", count, count)
        [container] = spec["template"]["spec"]["containers"]
        assert container["resources"] == {"limits": {"cpu": "1"}}
        assert container["command"] == ["bash", "-c"]
        [script], index = container["args"], "JOB_COMPLETION_INDEX"
    fake = tmp_path / "poisonkit"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    ran = []
    for element in range(count):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", index: str(element)}
        command = ["bash", "-c", script]
        ran.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    units = ["undefended", "0", "1", "2"]  # ten base models in stacks of four
    assert [lines.splitlines() for lines in ran] == [[*ARRAY, "--only", unit] for unit in units]


def test_an_array_on_gpus_asks_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is printed there need be none."""
    for kind, asked in {"slurm": "#SBATCH --gres=gpu:1", "kubernetes": "nvidia.com/gpu: 1"}.items():
        assert main([*ARRAY, "--device", "cuda", "--print-job", kind]) == 0
        assert asked in capsys.readouterr().out


def test_what_is_left_is_said_as_it_is_asked_for() -> None:
    for only in ("0", "0-3", "1,3-4,9,undefended", "undefended"):
        assert arrays.named(arrays.places(only, 10)) == only
    assert arrays.named(arrays.places("2,1,1-3,0", 10)) == "0-3"


def test_gpus_of_ray_go_with_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    ray = ["run", "--data", "digits", "--engine", "ray"]
    assert main([*ray, "--ray.gpus", "0.25"]) == 2
    assert "--ray.gpus must be above 0 with --device cuda, and only then, got 0.25 on cpu" in capsys.readouterr().err
    assert main([*ray, "--device", "cuda", "--dry-run"]) == 2
    assert main([*ray, "--device", "cuda", "--ray.gpus", "0.25", "--dry-run"]) == 0
    capsys.readouterr()
    assert main([*ray, "--options"]) == 0
    assert re.search(r"--ray.retries +3", capsys.readouterr().out)
    assert main(["run", "--data", "digits", "--ray.gpus", "1"]) == 2


def test_a_small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    demo = EXPERIMENTS["demo"]
    recipe = replace(demo.recipe, epochs=1, model=replace(demo.recipe.model, width=4))
    monkeypatch.setitem(EXPERIMENTS, "demo", replace(demo, recipe=recipe, defense=replace(demo.defense, partitions=2)))
    assert main(["demo", "--out", str(tmp_path / "run")]) == 0
    assert re.search(r"^dpa +\d+\.\d %", capsys.readouterr().out, re.MULTILINE)


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in [*ATTACKS, *DEFENSES, *DATASETS, "resnet50", "demo"]:
        assert re.search(rf"^{re.escape(name)} ", shown, re.MULTILINE), name


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for name in ("poisonkit", "torch", "threads", "core", "cuda"):
        assert re.search(rf"^{name}\b", shown, re.MULTILINE), name


def test_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.stack([np.arange(12288) % 256, np.full(12288, 255)]).astype(np.uint8)
    np.save(tmp_path / "rows.npy", rows.reshape(2, 3, 64, 64))
    (tmp_path / "file").write_bytes(rows[0].tobytes())
    assert main(["hash", str(tmp_path / "rows.npy"), str(tmp_path / "file")]) == 0
    ramp, white, file = capsys.readouterr().out.splitlines()
    # vectors anyone can recompute from the published stream of weights
    assert ramp == f"012734707987956 246519511086142 12288 {tmp_path / 'rows.npy'}[0]"
    assert white == f"187717817426925 238800835935740 12288 {tmp_path / 'rows.npy'}[1]"
    assert file == f"012734707987956 246519511086142 12288 {tmp_path / 'file'}"
    assert main(["hash", "--seed", "1", str(tmp_path / "file")]) == 0
    expected = ops.weighted_sum_hash(torch.from_numpy(rows[:1]), ops.hash_weights(12288, seed=1))[0].tolist()
    assert capsys.readouterr().out.split()[:2] == [f"{value:015d}" for value in expected]


def test_hash_refuses_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "floats.npy", np.zeros((2, 3)))
    (tmp_path / "torn.npy").write_bytes((tmp_path / "floats.npy").read_bytes()[:90])
    (tmp_path / "large").write_bytes(bytes(2**20 + 1))
    for name, rule in [
        ("floats.npy", "uint8 rows"),
        ("torn.npy", "a whole .npy file"),
        ("large", "at most 1,048,576 bytes"),
    ]:
        assert main(["hash", str(tmp_path / name)]) == 2
        assert re.match(f"poisonkit: .*{rule}", capsys.readouterr().err)

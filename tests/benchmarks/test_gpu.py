"""`make gpu`: inside its time, whatever its sections do; right figures; a report that says what was not run."""

import json
import os
import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from benchmarks.gpu import main as command
from benchmarks.gpu.correctness import HeadInputs, by_kernels, compare_kernels, exact, padded_rows
from benchmarks.gpu.differences import difference, not_compared
from benchmarks.gpu.main import ended_well, main
from benchmarks.gpu.marked import counted
from benchmarks.gpu.models import Models
from benchmarks.gpu.peaks import PeakWatch
from benchmarks.gpu.presets import PRESETS, sections_of
from benchmarks.gpu.rates import listed_as
from benchmarks.gpu.report import markdown
from benchmarks.gpu.rows import ROWS, figures, filled
from benchmarks.gpu.running import Section, limit_of, run_sections
from benchmarks.throughput.phases import PHASES
from benchmarks.throughput.replay import Replay


ROOT = Path(__file__).parents[2]
TINY = Models.of(PRESETS["tiny"].size, "cpu", None, None)


def fake(name: str, *arguments, weight: float = 1, environment=None) -> Section:
    return Section(name, f"what {name} shows", f"support.fake_sections:{name}", weight, arguments, environment or {})


def ran(sections: list[Section], seconds: float, folder: Path, known=None) -> dict:
    found = dict(known or {})
    run_sections(sections, found, seconds, folder, found.__setitem__)
    return found


# Time and failures


def test_a_section_has_its_share_of_what_is_left():
    one, two, three = (fake("rows", weight=weight) for weight in (1, 2, 3))
    assert limit_of(one, [two, three], 600) == 100
    assert limit_of(two, [three], 590) == 236  # the first took 10 of its 100 seconds
    assert limit_of(three, [], 42) == 42


def test_a_section_that_fails_dies_or_lasts_costs_itself_alone(tmp_path):
    note = tmp_path / "child"
    sections = [
        fake("breaks", 2),
        fake("dies", 1),
        fake("lasts", 60, str(note), weight=0.001),
        fake("lacks", "vLLM"),
        fake("rows", 3, environment={"CUDA_VISIBLE_DEVICES": "5"}),
    ]
    began = time.monotonic()
    found = ran(sections, 4000, tmp_path)  # of which the one that lasts has a second or two
    assert time.monotonic() - began < 10
    assert list(found) == ["breaks", "dies", "lasts", "lacks", "rows"]
    assert {name: outcome["status"] for name, outcome in found.items()} == {
        "breaks": "failed", "dies": "failed", "lasts": "out of time", "lacks": "skipped", "rows": "done",
    }  # fmt: skip
    assert found["breaks"]["reason"] == "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert "Traceback" in (tmp_path / "breaks.log").read_text()
    assert "ended with code 9" in found["dies"]["reason"] and found["lacks"]["reason"] == "vLLM is not installed"
    assert [len(outcome["rows"]) for outcome in found.values()] == [2, 1, 1, 0, 3]  # what was sent is kept
    assert {row["gpus"] for row in found["rows"]["rows"]} == {"5"}
    child = int(note.read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_no_section_runs_beyond_the_time_of_all(tmp_path):
    began = time.monotonic()
    found = ran([fake("rows", 1), fake("lasts", 60, str(tmp_path / "child"))], 0, tmp_path)
    assert time.monotonic() - began < 3
    assert {outcome["status"] for outcome in found.values()} == {"out of time"}


def test_what_is_done_is_not_run_again_and_what_failed_is(tmp_path, capsys):
    known = {"rows": {"status": "done", "rows": ["kept"]}, "lacks": {"status": "failed", "rows": []}}
    found = ran([fake("rows", 2), fake("lacks", "it")], 60, tmp_path, known)
    assert found["rows"]["rows"] == ["kept"] and found["lacks"]["status"] == "skipped"
    assert "rows: its result is there" in capsys.readouterr().err


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """`main` with fake sections: what it returns and writes."""

    def run(sections: list[Section], *flags: str) -> tuple[int, dict, str]:
        monkeypatch.setattr(command, "sections_of", lambda *_: sections)
        monkeypatch.setattr(command, "WORK", tmp_path / "work")
        code = main(["--device", "cpu", "--output", str(tmp_path / "out"), *flags])
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        return code, results, (tmp_path / "out" / "report.md").read_text()

    return run


def test_the_exit_code_says_whether_all_ran_and_the_report_what_did_not(fakes):
    code, results, report = fakes([fake("rows", 1), fake("lacks", "vLLM")])
    assert code == 0 and results["sections"]["lacks"]["status"] == "skipped"
    code, results, report = fakes([fake("rows", 1), fake("breaks", 1)])
    assert code == 1 and list(results["sections"]) == ["rows", "lacks", "breaks"]  # the earlier ones are kept
    assert "| `breaks` | what breaks shows |" in report and "failed: RuntimeError: CUDA out of memory" in report
    assert "skipped: vLLM is not installed" in report and "**Nothing here was run on a GPU.**" in report
    assert "sections: 1 done, 1 skipped, 1 failed" in report


def test_results_of_another_run_are_not_mixed_with_these(fakes, capsys, monkeypatch):
    fakes([fake("rows", 1)])
    monkeypatch.setattr(command, "optional_versions", lambda: {"vllm": "0"})
    with pytest.raises(SystemExit) as refused:
        fakes([fake("rows", 1)])
    said = capsys.readouterr().err
    assert refused.value.code == 2 and "is of another run: versions was" in said and "--overwrite" in said
    assert fakes([fake("rows", 2)], "--overwrite")[1]["sections"]["rows"]["rows"][1]["number"] == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sections", "rates,ratse"], "there is no 'ratse'. There are: rates, correctness,"),
        (["--minutes", "0"], "--minutes 0: give more than 0"),
        (["--model", "nowhere"], "--model nowhere: there is no config.json"),
        (["--teacher", "fire_opd_trl/demo/models/teacher"], "--teacher without --model"),
        (["--output", "Makefile"], "--output Makefile: no such folder can be made (File exists). Name another."),
        (["--results", "--output", "nowhere"], "nowhere/results.json is not there"),
    ],
)
def test_misuse_is_refused_before_anything_runs(flags, said, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["--device", "cpu", *flags])
    assert refused.value.code == 2 and said in capsys.readouterr().err


def test_a_cpu_sees_no_gpu_and_interprets_triton(tmp_path):
    on_cpu = {one.name: one.environment for one in sections_of(PRESETS["tiny"], TINY, tmp_path)}
    assert {environment["CUDA_VISIBLE_DEVICES"] for environment in on_cpu.values()} == {""}
    assert [name for name, environment in on_cpu.items() if "TRITON_INTERPRET" in environment] == ["correctness"]
    on_card = sections_of(PRESETS["card"], replace(TINY, device="cuda"), tmp_path)
    assert not any("TRITON_INTERPRET" in one.environment for one in on_card)
    assert {one.name for one in on_card} - set(on_cpu) == {"bench_medium", "bench_qwen3-0.6b"}


# Figures


def test_a_difference_is_within_its_bound_or_not():
    found, expected = torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])
    row = difference("x", "s", found, expected, 0.25, "mean", "because")
    assert (row["max"], row["mean"], row["relative"]) == (0.5, 0.25, 0.1) and row["holds"]
    assert not difference("x", "s", found, expected, 0.4, "max", "because")["holds"]
    assert not difference("x", "s", found * torch.nan, expected, 9.0, "max", "because")["holds"]


def test_outcomes_that_are_not_well():
    done = {"status": "done", "rows": [{"holds": True}, {"skipped": "no Triton"}]}
    assert ended_well(done) and ended_well({"status": "skipped", "rows": []})
    assert not ended_well({"status": "done", "rows": [{"holds": True}, {"holds": False}]})
    assert not ended_well({"status": "out of time", "rows": []}) and not ended_well({"status": "failed", "rows": []})


def test_the_kernels_agree_with_whole_logits_and_a_wrong_one_is_found(monkeypatch):
    rows = list(compare_kernels(TINY, 6))
    compared = [row for row in rows if "skipped" not in row]
    assert len(compared) >= 24 and all(row["holds"] for row in compared)
    assert {row["setting"] for row in compared} >= {"head, float32, torch", "head, bfloat16, torch"}
    inputs = HeadInputs.of(TINY, 6)
    expected, found = exact(inputs), by_kernels(replace(inputs, ids_N=inputs.ids_N.roll(1)).to(torch.bfloat16), "cpu")
    wrong = {name for name, value in expected.items() if (found[name].double() - value).norm() > 0.1 * value.norm()}
    assert {"log-probability", "log-probability: gradient in the head"} <= wrong
    assert not any("entropy" in name for name in wrong)  # it does not depend on which token was sampled


def test_rows_are_padded_behind_and_labelled_at_their_completions():
    replay = Replay([[2, 3], [4, 5]], [[6, 1], [7, 8, 1]])
    ids_BL, label_BL = padded_rows(replay, "cpu")
    assert ids_BL.tolist() == [[2, 3, 6, 1, 0], [4, 5, 7, 8, 1]]
    assert label_BL.tolist() == [[-100, -100, 6, 1, -100], [-100, -100, 7, 8, 1]]


def test_a_peak_belongs_to_the_phase_in_which_it_was(monkeypatch):
    in_use = iter([5, 30, 20, 40, 10])
    monkeypatch.setattr("benchmarks.gpu.peaks.peak", lambda device: next(in_use))
    monkeypatch.setattr("benchmarks.gpu.peaks.reset_peak", lambda device: None)
    watch = PeakWatch(torch.device("cpu"))
    watch.start()
    watch.push("rollout")  # the update had 5
    watch.pop()  # the rollout 30
    watch.push("teacher")  # the update 20
    watch.pop()  # the teacher 40
    watch.stop()  # the update 10
    assert watch.peaks == {"rollout": 30, "teacher": 40, "student": 0, "update": 20}


def test_a_card_is_found_in_the_table_of_the_plan():
    assert listed_as("NVIDIA H100 80GB HBM3").name == "h100"
    assert listed_as("NVIDIA GeForce RTX 5060") is None


def test_the_last_line_of_pytest_is_counted():
    assert counted("..\n==== 1 failed, 2 passed, 3 skipped in 0.42s ====") == {"failed": 1, "passed": 2, "skipped": 3}
    assert counted("") == {}


# Rows of the results


def ratio(above: str, below: str, value: float) -> dict:
    one = {"median": value, "low": None, "high": None, "least": value, "most": value, "n": 1}
    return {"ratio": {"above": above, "below": below, "step": one, "without_rollout": {**one, "median": 2 * value}}}


def rehearsal() -> dict:
    """Results with two sections: one that is done, one that is not."""
    run = {"card": None, "cpu": "a CPU, 2 cores", "device": "cpu", "preset": "tiny", "model": None, "memory": None}
    peak = {"setting": "full", "phases": {"update": 4e9}, "planned": {"update": 5e9}}
    return {
        "run": run,
        "date": "2026-01-02",
        "sections": {
            "bench_small": {
                "status": "done",
                "rows": [{"arm": "fire"}, ratio("distillation", "opd_full", 3.0), ratio("grpo", "fire", 1.5)],
            },
            "memory_full": {"status": "done", "rows": [peak]},
            "engine": {"status": "out of time", "rows": [{"step": 1}]},
        },
    }


def test_figures_of_the_results():
    speed, memory, *others = ROWS
    found = figures(rehearsal())
    assert found == {speed: "3.00 and 3.00 times as fast (small)", memory: "full 4.0 GB, 0.80 of the plan"}
    rows = filled(rehearsal())
    assert rows[0].startswith(f"| {speed} | 3.00 and") and "**rehearsal, no GPU**: a CPU, 2 cores" in rows[0]
    assert rows[2:] == [f"| {what} | not run | – |" for what in others]
    results = rehearsal()
    results["run"]["card"] = "NVIDIA H100"
    assert "us, NVIDIA H100, [`make gpu`]" in filled(results)[0]


def on_a_card() -> dict:
    """Results of a run on a GPU, all made up, with something in every section."""
    results = rehearsal()
    results["run"] |= {
        "device": "cuda", "preset": "card", "card": "NVIDIA H100 80GB HBM3", "memory": 85.0e9, "driver": "570.1",
        "cuda": "12.9", "versions": {"torch": "2.13.0", "vllm": "0.31.0"}, "commit": "0123456789ab",
    }  # fmt: skip
    rates = {"name": "a card", "operations": 600e12, "bandwidth": 3e12, "host": 50e9, "memory": 85.0e9}
    peak = {"setting": "full", "phases": dict.fromkeys(PHASES, 9e9), "planned": dict.fromkeys(PHASES, 10e9)}
    gap = {"fire/sampling_gap": 0.004, "fire/sampling_kl": 1e-5, "fire/sampling_unknown": 0.0}
    memory = {"before": 4e9, "built": 5e9, "sampling": 30e9, "training": 12e9}
    arm = {"arm": "fire", "seconds": 0.5, "tokens_per_second": 9000.0, "memory": {"above": 1e9, "peak": 2e9}}
    compared = [difference("entropy", "head, bfloat16, Triton", torch.ones(2), torch.zeros(2), 0.5, "max", "because")]
    rows = {
        "rates": [{"measured": rates, "listed": {**rates, "operations": 1000e12}}],
        "correctness": compared,
        "attention": [not_compared("log-probability", "flash attention", "not installed")],
        "memory_full": [{**peak, "reserved": 12e9}],
        "engine": [
            {"step": 1, **gap, "seconds": 2.0, "times": {"rollout": 1.5}},
            {"memory": memory, "sleeps": True, "limit": 0.05},
        ],
        "bench_medium": [arm, ratio("distillation", "opd_full", 3.0), ratio("grpo", "fire", 1.5)],
        "tests": [{"passed": 1}],
    }
    results["sections"] = {
        name: {"status": "done", "reason": "", "seconds": 30.0, "rows": found} for name, found in rows.items()
    }
    results["titles"] = {name: f"what {name} shows" for name in rows}
    return {**results, "command": ["python -m benchmarks.gpu"], "minutes": 10, "size": asdict(TINY.size)}


def test_the_report_of_a_card():
    results = on_a_card()
    text = markdown(results)
    assert text.startswith("# NVIDIA H100 80GB HBM3\n") and "ehears" not in text and "Not run" not in text
    assert "| matrix products, G operations/s | 600000 | 1000000 | 0.60 |" in text
    assert "| NVIDIA H100 80GB HBM3, 85 GB, driver 570.1, CUDA 12.9 |" in text
    assert "done; **1 beyond their bounds**" in text and "| max ≤ 0.5 | **no** |" in text
    assert "not compared: not installed" in text and "0 of 1 comparisons within their bounds" in text
    assert "| 9 / 10 | 0.90 | 12 |" in text  # measured, planned, their ratio, reserved
    assert "| end of the step, asleep | 12 |" in text and "| engine has sampled | 30 |" in text
    assert "`pytest -m gpu`: 1 passed." in text
    assert len(figures(results)) == len(ROWS) - 1  # attention was not compared at all
    assert not re.search(r"\d[eE]\+", text)  # no 6e+05


def test_a_card_is_described(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 570.86.15\necho 570.86.15\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L40S")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=48e9))
    found = command.describe("cuda")
    assert (found["card"], found["memory"], found["driver"]) == ("NVIDIA L40S", 48e9, "570.86.15")
    assert command.describe("cpu")["card"] is None


def test_every_row_that_it_fills_stands_in_the_results():
    page = (ROOT / "docs" / "results.md").read_text()
    for what in ROWS:
        assert f"\n| {what} | " in page
    waiting = re.findall(r"^\| (.*?) \| not run", page, re.MULTILINE)
    assert set(waiting) >= set(ROWS) or (ROOT / "docs" / "gpu" / "results.json").is_file()
    assert all(what in ROWS or "Qwen3-30B-A3B" in what for what in waiting)  # which no single GPU can fill


# Whole


@pytest.mark.nightly
def test_the_tiny_preset_runs_to_its_end_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    assert main(["--device", "cpu", "--minutes", "30", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    ended = {name: outcome["status"] for name, outcome in results["sections"].items()}
    assert set(ended) == {one.name for one in sections_of(PRESETS["tiny"], TINY, tmp_path)}
    may_be_missing = {"engine"}  # vLLM has an environment of its own
    assert {name for name, status in ended.items() if status != "done"} <= may_be_missing
    assert markdown(results) == (tmp_path / "report.md").read_text()
    assert set(ROWS) - set(figures(results)) <= {"vLLM in the trainer's process, asleep while training"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_models_and_attention_agree_on_the_card(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    flags = ["--preset", "tiny", "--sections", "correctness,attention", "--output", str(tmp_path)]
    assert main(["--device", "cuda", *flags]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["sections"]["correctness"]["rows"]
    assert {"head, bfloat16, Triton", "head, float32, Triton"} <= {row["setting"] for row in rows}
    assert not any(row == not_compared(row["what"], row["setting"], row.get("skipped")) for row in rows)

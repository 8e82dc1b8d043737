"""`fire-opd compare`: right intervals, the same work for every arm, and runs that survive the failures of others."""

import dataclasses
import json
import re

import pytest
from support.runs import invented

from fire_opd_trl.evaluation import files
from fire_opd_trl.evaluation import workers as pool
from fire_opd_trl.evaluation.compare import command as main
from fire_opd_trl.evaluation.compare import records, runs
from fire_opd_trl.evaluation.compare.presets import ARMS


# Runs


SMALL = ["--workers", "0", "--steps", "2", "--problems", "8"]


@pytest.fixture
def pretended(monkeypatch):
    """No training: the runs that would have been made, in their order. `fire` of seed 1 breaks."""
    made = []

    def run_one(folder, arm, seed, settings):
        made.append((arm.name, seed))
        if (arm.name, seed) == ("fire", 1):
            raise RuntimeError("the student fell over")
        run = invented(arm.name, seed, 0.7, settings=settings, seconds=1.0)
        files.write_json(records.run_path(folder, arm, seed), run)
        return run

    monkeypatch.setattr(runs, "run_one", run_one)
    monkeypatch.setattr(runs, "silence_libraries", lambda: None)
    return made


def test_a_failed_run_stops_no_other_and_is_tried_again(tmp_path, pretended, capsys):
    command = ["--methods", "opd,exopd,fire", "--seeds", "2", "--output_dir", str(tmp_path), *SMALL]
    assert main.main(command) == 1
    all_runs = [(name, seed) for seed in (0, 1) for name in ("opd", "fire", "random", "exopd")]
    assert pretended == all_runs
    printed = capsys.readouterr()
    assert "fire seed 1: FAILED: RuntimeError: the student fell over" in printed.out
    assert "[8/8] exopd seed 1: 50.0 -> 70.0 %  1 s   done" in printed.out
    error = tmp_path / "runs" / "fire-seed1.error.txt"
    assert f"1 of 8 runs failed:\n  fire seed 1: {error}" in printed.err
    assert "Traceback" in error.read_text() and (tmp_path / "selection" / "report.md").is_file()

    pretended.clear()
    assert main.main(command) == 1
    assert pretended == [("fire", 1)] and "7 of 8 runs are there already" in capsys.readouterr().out


def test_finished_runs_are_kept_and_other_settings_are_refused(tmp_path, pretended, capsys):
    command = ["--methods", "opd", "--seeds", "2", "--output_dir", str(tmp_path), *SMALL]
    assert main.main(command) == 0 and len(pretended) == 2
    assert main.main(command) == 0 and len(pretended) == 2
    assert main.main([*command, "--seeds", "3"]) == 0 and pretended[2:] == [("opd", 2)]

    with pytest.raises(SystemExit) as exit:
        main.main([*command, "--steps", "3"])
    assert exit.value.code == 2 and len(pretended) == 3
    message = " ".join(capsys.readouterr().err.split())
    assert "opd-seed0.json was made with steps=2, and 3 is asked for" in message
    assert "--output_dir" in message and "--overwrite" in message

    assert main.main([*command, "--steps", "3", "--overwrite"]) == 0 and len(pretended) == 5
    assert main.main([*command, "--only_report"]) == 0 and len(pretended) == 5


def test_an_arm_that_has_changed_is_refused(tmp_path):
    arm, settings = ARMS["fire: alpha=2"], runs.shared_settings(60, 2000, 500, 10)
    path = records.run_path(tmp_path, arm, 0)
    assert records.finished_run(tmp_path, arm, 0, settings) is None
    files.write_json(path, invented(arm.name, 0, 0.7))
    assert records.finished_run(tmp_path, arm, 0, settings)["after"] == 0.7
    assert records.finished_run(tmp_path, dataclasses.replace(arm, against="fire"), 0, settings)  # only reported
    with pytest.raises(records.OtherSettings, match=r"config=\{'confidence': 2.0\}"):
        records.finished_run(tmp_path, dataclasses.replace(arm, config={"confidence": 4.0}), 0, settings)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half written


def test_wrong_arguments_are_refused_in_one_sentence(capsys, tmp_path):
    for arguments, sentence in [
        (["--methods", "opd,fier"], "there is no arm 'fier'. Did you mean 'fire'?"),
        (["--seeds", "0"], "--seeds 0: give at least 1."),
        (["--workers", "-1"], "--workers -1: give at least 0."),
        (["--preset", "tabel5"], "there is no preset 'tabel5'. Did you mean 'table5'? Presets: smoke,"),
    ]:
        with pytest.raises(SystemExit) as exit:
            main.main(
                [*(["--preset", "smoke"] * (arguments[0] != "--preset")), *arguments, "--output_dir", str(tmp_path)]
            )
        assert exit.value.code == 2 and sentence in capsys.readouterr().err
    assert main.main(["--preset", "all", "--only_report", "--output_dir", str(tmp_path)]) == 1
    assert "nothing to report" in capsys.readouterr().err


def test_without_a_choice_nothing_starts_and_the_presets_are_shown_with_their_durations(tmp_path, capsys, pretended):
    for arguments in ([], ["--only_report"]):
        assert main.main([*arguments, "--output_dir", str(tmp_path)]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("Nothing was started. Choose") and pretended == [] and list(tmp_path.iterdir()) == []
        assert max(map(len, shown.splitlines())) <= 80
    runs = len(main.plan([ARMS[name] for name in main.PRESETS["all"].arms], 8))
    assert runs == 211  # as in docs/comparison, where a run took 40 s: 106 on either of two workers are 71 minutes
    assert "all            211  71 min " in shown and "smoke            4  1 min " in shown
    assert main.duration(211, 60, 1) == "2.4 h"  # 211 x 40 s


def test_a_worker_that_dies_costs_its_run_alone(tmp_path, monkeypatch):
    (tmp_path / "mortal_worker.py").write_text(  # answers a job with its number, and dies of the first
        "import os\n"
        "def do_jobs_of(link):\n"
        "    while True:\n"
        "        seed = link.recv()['seed']\n"
        "        if seed == 0: os.kill(os.getpid(), 9)\n"
        "        link.send({'error': None, 'seed': seed, 'threads': os.environ['OMP_NUM_THREADS']})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    real = main.Worker

    def start_another(name, function, **kwargs):
        assert function == "fire_opd_trl.evaluation.compare.runs:do_jobs_of" and callable(runs.do_jobs_of)
        return real(name, "mortal_worker:do_jobs_of", **kwargs)

    monkeypatch.setattr(main, "Worker", start_another)
    answers = {}
    pool.do_jobs(
        [{"seed": seed} for seed in range(5)],
        2,
        main.start_worker,
        lambda job, answer: answers.update({job["seed"]: answer}),
    )
    assert "code -9" in answers[0]["error"] and "memory" in answers[0]["error"]
    assert [answers[seed] for seed in range(1, 5)] == [
        {"error": None, "seed": seed, "threads": "1"} for seed in range(1, 5)
    ]


# The real thing


def test_smoke_end_to_end(tmp_path, capsys):
    command = ["--preset", "smoke", "--workers", "1", "--output_dir", str(tmp_path)]
    assert main.main(command) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\[1/4\] opd seed 0: \d+\.\d -> \d+\.\d %  \d+ s   about \d+ (s|min) left\n", printed)
    assert "[4/4] fire seed 1" in printed and printed.count("\n") == 1 + 4 + 6
    made = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")}
    assert sorted(made) == ["fire-seed0", "fire-seed1", "opd-seed0", "opd-seed1"]
    for run in made.values():
        assert [entry["step"] for entry in run["history"]] == [1, 2, 3]
        assert [step for step, _ in run["curve"]] == [0, 1, 2, 3]
        assert all(entry[name] is not None for entry in run["history"] for name in runs.LOGGED)
        assert run["settings"] == runs.shared_settings(3, 64, 32, 1) and 0 < run["cpu_seconds_per_step"] < 20
    opd, fire = made["opd-seed0"], made["fire-seed0"]
    # Same student, prompts and seed: the first samples are the same, before any update.
    for name in ("accuracy", "response_length"):
        assert opd["history"][0][name] == fire["history"][0][name]
    assert opd["history"][0]["entropy"] != made["opd-seed1"]["history"][0]["entropy"]
    assert opd["before"] == fire["before"] and opd["after"] != fire["after"]
    assert opd["kept_token_ratio"] == 1.0 and 0.75 < fire["kept_token_ratio"] < 0.85
    for name in ("learning_curves", "differences"):
        assert (tmp_path / "smoke" / f"{name}.png").stat().st_size > 10_000
        assert "<svg" in (tmp_path / "smoke" / f"{name}.svg").read_text()[:1000]

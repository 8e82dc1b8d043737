"""`fire-opd compare`: right intervals, the same work for every arm, and runs that survive the failures of others."""

import dataclasses
import json
import random
import re
import sys

import pytest

from fire_opd_trl import METHODS, FiReOPDConfig
from fire_opd_trl.demo import task
from fire_opd_trl.evaluation import files, statistics
from fire_opd_trl.evaluation import workers as pool
from fire_opd_trl.evaluation.compare import baselines, records, runs
from fire_opd_trl.evaluation.compare import command as main
from fire_opd_trl.evaluation.compare.presets import ARMS, BASELINES, PRESETS, Arm, selected
from fire_opd_trl.evaluation.compare.report import sentences, write_report
from fire_opd_trl.evaluation.compare.summary import table


# Numbers


@pytest.mark.parametrize(
    ("df", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (7, 2.3646), (30, 2.0423), (1000, 1.9623)]
)
def test_t_quantiles_are_those_of_the_tables(df, quantile):
    assert statistics.t_quantile(df) == pytest.approx(quantile, abs=5e-5)


def test_t_probabilities_are_those_of_the_closed_forms():
    # df=1 is Cauchy: P(|t| > 1) = 1/2. df=2: P(|t| > x) = 1 - x / sqrt(2 + x^2).
    assert statistics.t_two_sided(1.0, 1) == pytest.approx(0.5, abs=1e-12)
    assert statistics.t_two_sided(3.0, 2) == pytest.approx(1 - 3 / 11**0.5, abs=1e-12)
    assert statistics.t_two_sided(-3.0, 2) == statistics.t_two_sided(3.0, 2)
    assert statistics.t_two_sided(0.0, 5) == 1.0
    assert statistics.t_quantile(7, level=0.01) == pytest.approx(3.4995, abs=5e-5)


def test_a_paired_difference_worked_by_hand():
    # Seeds 0, 1, 2 are common: differences 1, 2, 3, mean 2, sd 1, error 1/sqrt(3), t = 2 sqrt(3) with df = 2:
    # p = 1 - 2 sqrt(3) / sqrt(2 + 12) = 0.0741799; half width 4.30265 / sqrt(3) = 2.48414.
    found = statistics.paired({0: 2.0, 1: 4.0, 2: 6.0, 3: 99.0}, {2: 3.0, 1: 2.0, 0: 1.0, 4: -99.0})
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half_width == pytest.approx(2.48414, abs=1e-5)
    assert found.p == pytest.approx(0.0741799, abs=1e-7)
    assert statistics.paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("values", "half_width", "p"),
    [([0.3], None, None), ([0.0], None, None), ([0.3, 0.3, 0.3], None, None), ([0.0, 0.0], 0.0, 1.0)],
)
def test_seeds_without_spread_claim_nothing(values, half_width, p):
    found = statistics.estimate(values)
    assert (found.half_width, found.p) == (half_width, p)


def test_missing_scipy_is_said_before_anything_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SystemExit) as exit:
        main.main(["--preset", "smoke", "--output_dir", str(tmp_path)])
    assert exit.value.code == 2 and list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.endswith("Intervals over seeds need scipy: pip install fire-opd-trl[report]\n")


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.5; none below an earlier one.
    assert statistics.holm({"c": 0.03, "a": 0.01, "d": 0.5, "b": 0.02}) == pytest.approx(
        {"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.5}
    )
    assert statistics.holm({"a": 0.03, "b": 0.02}) == pytest.approx({"b": 0.04, "a": 0.04})  # 0.03 alone is not below
    assert statistics.holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_a_band_by_hand():
    mean, low, high = statistics.band([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    assert mean == [2.0, 0.0] and low == pytest.approx([2 - 2.48414, 0], abs=1e-5)
    assert high == pytest.approx([2 + 2.48414, 0], abs=1e-5)


# Presets


def test_a_name_means_one_setting_and_a_setting_has_one_name():
    settings = [json.dumps(arm.trained_with, sort_keys=True) for arm in ARMS.values()]
    assert len(set(settings)) == len(settings)
    for arm in ARMS.values():  # and no other way to say that it is the default
        for field, value in arm.config.items():
            default = {f.name: f.default for f in dataclasses.fields(FiReOPDConfig)}.get(field)
            assert value != default, (arm.name, field)
    files = [records.run_path(main.Path("x"), arm, 0) for arm in ARMS.values()]
    assert len(set(files)) == len(files) and all(re.fullmatch(r"[a-z0-9.=_-]+", file.name) for file in files)


def test_arms_whose_names_have_commas_can_be_named_too():
    wanted = ["opd", "fire: soft rows, hard tokens", "eopd: tau=0.1, random tokens", "fire"]
    assert main.arm_names("opd, fire: soft rows, hard tokens,eopd: tau=0.1, random tokens,fire") == wanted
    assert main.arm_names("opd,nothing") == ["opd", "nothing"]
    for name in ARMS:
        assert main.arm_names(f"{name}, opd") == [name, "opd"]


def test_a_preset_may_be_called_by_its_short_name():
    parse = main.build_parser().parse_args
    assert [parse(["--preset", name]).preset for name in ("table5", "paper-table5", "smoke")] == [
        "paper-table5",
        "paper-table5",
        "smoke",
    ]
    with pytest.raises(SystemExit):
        parse(["--preset", "table9"])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_holds_what_its_arms_are_compared_with(name):
    arms = selected(PRESETS[name])
    names = {arm.name for arm in arms}
    assert len(names) == len(arms)
    for arm in arms:
        assert arm.against in names and ARMS[arm.against].generations in (1, arm.generations)
        assert arm.control is None or ARMS[arm.control].is_control
        if arm.control:  # the same method and arguments, at random
            control = ARMS[arm.control]
            assert control.method in (arm.method, "random") and control.method_kwargs == arm.method_kwargs
            assert control.generations == arm.generations and control.against == arm.against
    if name == "all":
        assert {arm.method for arm in arms} == {*METHODS, *BASELINES}
    missing = {arm.control for arm in arms} - {None} - names
    mild = {"fire_released: random tokens", "iw_opd: random tokens", "scope: random rows"}  # by name only
    assert missing == {"smoke": {"random"}, "all": mild}.get(name, set())


@pytest.mark.parametrize(
    "arm", [arm for arm in ARMS.values() if arm.method not in BASELINES], ids=lambda arm: arm.name
)
def test_the_config_of_an_arm_can_be_built(arm, tmp_path):
    config = runs.fire_config(arm, str(tmp_path), steps=2, seed=3)
    assert (config.method, config.num_generations, config.seed) == (arm.method, arm.generations, 3)
    assert config.generation_batch_size == baselines.ROWS and not config.shuffle_dataset


def test_every_update_has_as_many_completions_and_groups_take_the_first_prompts():
    one, four = (list(baselines.prompts(3, 5, generations)["prompt"]) for generations in (1, 4))
    assert (len(one), len(four)) == (3 * 128, 3 * 32)
    assert [four[:32], four[32:64], four[64:]] == [one[:32], one[128:160], one[256:288]]
    assert one == [task.prompt(*pair) for pair in task.problems("train", 3 * 128, seed=5)]


def test_all_arms_get_a_seed_before_any_gets_the_next_and_groups_get_fewer():
    arms = [ARMS["opd"], ARMS["grpo"]]
    pairs = [(arm.name, seed) for arm, seed in main.plan(arms, seeds=7)]
    assert pairs[:4] == [("opd", 0), ("grpo", 0), ("opd", 1), ("grpo", 1)]
    assert [seed for name, seed in pairs if name == "grpo"] == [0, 1, 2, 3, 4]
    assert [seed for name, seed in pairs if name == "opd"] == list(range(7))
    assert len(main.plan(arms, seeds=3)) == 6 and len(main.plan(arms, seeds=1, reward_seeds=2)) == 3


def test_methods_bring_what_they_are_compared_with():
    assert [arm.name for arm in selected(PRESETS["all"], ["tip"])] == ["opd", "tip", "tip: random tokens"]
    assert [arm.name for arm in selected(PRESETS["all"], ["grpo"])] == ["opd", "opd-n4", "grpo"]


# What the report says


def invented(name: str, seed: int, after: float, **changes) -> dict:
    """A run that nobody made."""
    arm = ARMS[name]
    return {
        "arm": {"name": arm.name, **arm.trained_with},
        "seed": seed,
        "settings": runs.shared_settings(60, 2000, 500, 10),
        "versions": {"trl": "1.16.0"},
        **{"before": 0.5, "before_greedy": 0.8, "teacher": 0.98, "teacher_greedy": 1.0},
        **{"after": after, "after_greedy": 0.9, "curve": [[0, 0.5], [60, after]], "cpu_seconds_per_step": 0.5},
        **{"kept_token_ratio": None, "advantage_abs": None, "response_length": None, "history": []},
        **changes,
    }


def comparison(effects: dict[str, float], noise: float = 0.004, seeds: int = 6) -> list[dict]:
    draw = random.Random(1)
    return [
        invented(name, seed, 0.7 + 0.02 * seed + effect + draw.gauss(0, noise))
        for name, effect in effects.items()
        for seed in range(seeds)
    ]


def test_the_report_says_what_is_there_and_no_more(tmp_path):
    effects = {"opd": 0.0, "fire": 0.05, "random": 0.05, "exopd": -0.05, "tip": 0.0}
    found = comparison(effects)
    arms = [ARMS[name] for name in effects]
    rows = {row.arm.name: row for row in table(found, arms)}
    # Paired by seed: the seeds themselves differ by up to ten points.
    assert [rows[name].differs for name in effects] == [None, True, True, True, False]
    assert [rows[name].beats_chance for name in effects] == [None, False, None, None, None]
    text = "\n".join(sentences(list(rows.values())))
    assert re.search(r"Against `opd`, distinguishably higher: `fire` \(\+\d.\d\), `random` \(\+\d.\d\)\.", text)
    assert re.search(r"Against `opd`, distinguishably lower: `exopd` \(-\d.\d\)\.", text)
    assert re.search(r"Against `opd`, not distinguishable: `tip` \(.\d.\d\)\.", text)
    assert re.search(r"Against its random control, not distinguishable: `fire` against `random`", text)

    files = write_report(found, arms, tmp_path / "report", "Invented", expected=31)
    assert [file.name for file in files] == [
        *("report.md", "results.json", "learning_curves.png", "learning_curves.svg"),
        *("differences.png", "differences.svg"),
    ]
    report = files[0].read_text()
    assert "**1 of 31 are missing**" in report and text.splitlines()[0] in report
    lines = [line for line in report.splitlines() if line.startswith("|")]
    assert len(lines) == 4 + len(effects) and len({line.count("|") for line in lines}) == 1
    assert len(json.loads(files[1].read_text())["rows"]) == len(effects)


def test_one_seed_gives_no_verdict():
    rows = table(comparison({"opd": 0.0, "fire": 0.3}, seeds=1), [ARMS["opd"], ARMS["fire"]])
    text = " ".join(sentences(rows))
    assert "no interval can be given for: `fire`" in text and "too few seeds" in text
    assert "distinguishabl" not in text


def test_runs_of_two_kinds_do_not_share_a_table(tmp_path):
    other = invented("fire", 0, 0.7, settings=runs.shared_settings(30, 2000, 500, 10))
    with pytest.raises(records.OtherSettings, match="steps is 60 in opd seed 0 and 30 in fire seed 0"):
        records.one_settings([invented("opd", 0, 0.7), other])


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
    ]:
        with pytest.raises(SystemExit) as exit:
            main.main([*arguments, "--output_dir", str(tmp_path)])
        assert exit.value.code == 2 and sentence in capsys.readouterr().err
    assert main.main(["--only_report", "--output_dir", str(tmp_path)]) == 1
    assert "nothing to report" in capsys.readouterr().err


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
    assert "[4/4] fire seed 1" in printed and printed.count("\n") == 4 + 6
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


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_train_and_are_written_like_all_others(name, tmp_path):
    run = runs.run_one(tmp_path, ARMS[name], 0, runs.shared_settings(2, 16, 16, 1))
    assert run == json.loads((tmp_path / "runs" / f"{name}-seed0.json").read_text())
    assert [entry["step"] for entry in run["history"]] == [1, 2] and len(run["curve"]) == 3
    assert set(run) == {*invented(name, 0, 0.5), "seconds"}
    assert run["history"][0]["entropy"] > 0 and run["history"][0]["reverse_kl"] is None
    assert (run["response_length"] is None) == (name == "sft")


def test_sft_learns_the_completion_with_its_end_and_not_the_prompt(tmp_path):
    student, tokenizer = runs.load_embedded("student")
    teacher, _ = runs.load_embedded("teacher")
    observer = runs.make_observer(tokenizer, [], 1, 0)
    trainer = runs.build_trainer(ARMS["sft"], 0, 1, student, teacher, tokenizer, str(tmp_path), observer)
    assert observer.writing > 0
    (batch,) = list(trainer.get_train_dataloader())
    prompts = list(baselines.prompts(1, 0)["prompt"])
    written = task.sampled_completions(teacher, tokenizer, prompts, seed=0)
    assert batch["labels"].shape[0] == 128
    for row, (prompt, completion) in enumerate(zip(prompts, written, strict=True)):
        learned = batch["labels"][row][batch["labels"][row] != -100]
        assert tokenizer.decode(learned) == completion + task.EOS
        read = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert tokenizer.decode(read) == prompt + completion + task.EOS


def test_an_arm_of_trl_takes_no_recipe_arguments(tmp_path):
    arm = Arm("sft: wrong", "sft", {"keep": 0.5})
    with pytest.raises(ValueError, match="takes no method_kwargs"):
        runs.build_trainer(arm, 0, 1, None, None, None, str(tmp_path), runs.make_observer(None, [], 1, 0))


@pytest.mark.parametrize("name", BASELINES)
def test_the_baselines_run_as_an_example(name, tmp_path, capsys):
    from fire_opd_trl.preflight.packaged import load_module, packaged_folder

    script = load_module(packaged_folder("examples") / "trl_baselines.py")
    share = script.main([name, "--steps", "1", "--problems", "16"])
    assert 0 <= share <= 1 and "of 16 held-out problems" in capsys.readouterr().out

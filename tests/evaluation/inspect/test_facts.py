"""What a report says in words of a run, and of two."""

from pathlib import Path

import pytest
from support.recorded import invented_run

from fire_opd_trl.evaluation.inspect.facts import differences, facts_of
from fire_opd_trl.evaluation.inspect.run import Records, Run, read_run


def run_of(about: dict, **others) -> Run:
    return Run(
        Path("run"), **{"about": about, "logs": [], "warnings": [], "records": Records(), "lacks": [], **others}
    )


def test_the_facts_say_what_was_trained_on_what_and_how_it_ended(tmp_path):
    run = read_run(invented_run(tmp_path, steps=2, rows=10))
    assert facts_of(run) == [
        ["status", "finished, step 10 of 10, took 0:30:00"],
        ["student", "org/student, LlamaForCausalLM, 135 M"],
        ["teacher math", "org/math, LlamaForCausalLM, 1.7 B"],
        ["teacher code", "org/code, LlamaForCausalLM, 1.7 B"],
        ["method", "fire: FiRe-OPD: drop the trajectories that the teacher finds least likely, then weigh tokens."],
        ["filter", "drop_lowest(drop_fraction=0.2)"],
        ["score", "mean_teacher_logp"],
        ["data", "1,000 prompts of org/prompts"],
        ["settings", "temperature=1.0"],
        # Of ten rows a step the filter drops one, one is empty, and one has teacher values that are not finite.
        ["recorded", f"20 trajectories at 2 steps from 1 to 10: 14 kept, 6 dropped; {len(run.records.tokens)} tokens"],
        ["made with", "fire_opd_trl 0.1.0, torch 2.13.0"],
    ]


def test_a_run_of_which_little_is_known_has_few_facts():
    assert facts_of(run_of({})) == [["status", "not known"]]
    running = {"status": "running", "started": "2026-11-27T20:00:00+00:00", "ended": None, "steps": 0, "max_steps": 9}
    assert facts_of(run_of(running, logs=[{"step": 4}], lacks=["No records."])) == [
        ["status", "running, step 4 of 9, started on 27 November 2026 at 20:00 UTC"],
        ["missing", "No records."],
    ]
    about = {
        "status": "failed",
        "stopped_because": "Too long.",
        "fit": {
            "math": {"verdict": "fits", "because": []},
            "code": {"verdict": "does not fit", "because": ["a", "b"]},
        },
        "error": "ValueError: " + "x" * 400,
        "teachers": {"teacher": {"name": "t", "adapter": "a"}},
    }
    facts = dict(facts_of(run_of(about)))
    assert facts["does teacher math fit?"] == "fits" and facts["does teacher code fit?"] == "does not fit. a. b"
    assert facts["teacher"] == "t, adapter a" and facts["stopped"] == "Too long."
    assert len(facts["error"]) == 300 and facts["error"].endswith("x…")


def test_of_a_folder_its_end_is_named_and_an_id_on_the_hub_is_whole():
    home = "/home/somebody/of/ours"
    about = {
        "status": "failed",
        "student": {"name": f"{home}/models/student/"},
        "teachers": {
            "a": {"name": "org/model", "adapter": f"{home}/adapters/lora"},
            "b": {"name": "outputs/deep/down/b"},
        },
        "error": f"OSError: [Errno 2] No such file: '{home}/models/student/x.json', see https://host/a/b/c and a/b/c.",
    }
    facts = dict(facts_of(run_of(about)))
    assert [facts[name] for name in ("student", "teacher a", "teacher b")] == [
        "models/student", "org/model, adapter adapters/lora", "down/b"
    ]  # fmt: skip
    assert facts["error"] == ("OSError: [Errno 2] No such file: 'student/x.json', see https://host/a/b/c and a/b/c.")
    two = [run_of(ABOUT | {"settings": {"model": f"{home}/models/{name}"}}) for name in ("small", "large")]
    assert differences(*two) == [["differs: model", "'models/small' here, 'models/large' in the other run"]]


def test_of_a_pair_the_verdict_comes_first_and_nothing_is_said_of_a_training():
    fit = {"verdict": "fits with doubts", "because": ["Few end"], "kl": 0.195, "kl_interval": [0.099, 0.302]}
    about = {
        "status": "inspected",
        "fit": {"teacher": fit},
        "steps": 0,
        "max_steps": 1,
        "settings": {"temperature": 1.0, "learning_rate": 1e-6},
    }
    assert facts_of(run_of(about)) == [
        [
            "does the teacher fit?",
            "fits with doubts: it is 0.20 nats a token from the student (95 % interval 0.10 to 0.30). Few end",
        ],
        ["status", "no training: one window of answers, looked at"],
        ["settings", "temperature=1.0"],
    ]


ABOUT = {
    "student": {"name": "student"},
    "teachers": {"teacher": {"name": "teacher"}},
    "data": {"rows": 100},
    "steps": 10,
    "max_steps": 10,
    "settings": {"learning_rate": 1e-5, "method": "fire", "output_dir": "a"},
}


def test_two_runs_are_told_apart_by_their_settings_but_not_by_where_they_lie():
    other = ABOUT | {"settings": {"learning_rate": 1e-5, "method": "opd", "output_dir": "b", "seed": 1}}
    assert differences(run_of(ABOUT), run_of(other)) == [
        ["differs: method", "'fire' here, 'opd' in the other run"],
        ["differs: seed", "None here, 1 in the other run"],
    ]
    assert differences(run_of(ABOUT), run_of(ABOUT)) == [["differs", "nothing in the settings"]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"student": {"name": "large"}}, "It has another student: student, and large in the other run."),
        ({"teachers": {"t": {"name": "large"}}}, "It has other teachers: teacher, and large in the other run."),
        ({"data": {"rows": 7}}, "It has other data: 100 prompts, and 7 prompts in the other run."),
        ({"data": None}, "It has other data: 100 prompts, and unknown in the other run."),
        ({"max_steps": 20}, "It has another number of steps: 10, and 20 in the other run."),
        ({"steps": 5}, "It has made 10 steps, and the other run 5."),
    ],
    ids=str,
)
def test_an_unfair_comparison_is_named_first(change, sentence):
    assert differences(run_of(ABOUT), run_of(ABOUT | change))[0] == ["not a fair comparison", sentence]
    assert len(differences(run_of(ABOUT), run_of(ABOUT | change))) == 2


def test_a_run_without_run_json_cannot_be_compared_fairly():
    assert differences(run_of(ABOUT), run_of({})) == [
        ["not a fair comparison", "Of one of the runs it is not known what ran: there is no run.json."],
        ["differs", "not known: a run.json is missing"],
    ]

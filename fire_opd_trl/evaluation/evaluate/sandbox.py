"""
Runs a command that nobody trusts, in bubblewrap or in a container of docker, and nowhere else.

What bounds what, in bubblewrap:

| what | by |
| --- | --- |
| network | a network namespace of its own, with nothing but its own loopback |
| files | a root of its own: /usr, and what the caller lists, read-only; a /tmp and a /dev/shm of bounded size |
| other processes | a process namespace of its own: what is in it dies with the first process, and that with us |
| rights | no capability, no new privileges, another user: of a user namespace, or a number that nobody else has |
| system calls | a filter of seccomp, on x86-64 and arm64: no namespaces, tracing, keys, memory beside that of a proces
| environment | starts empty, also that of the first process |
| memory, processes and threads, size of a file, open files, CPU time | `prlimit`, for each process |
| memory of all processes together | processes times memory, beside the size of /tmp and /dev/shm; no cgroup |
| wall time, size of the output | whoever reads: see [`Running`] |

Docker gets the same by its own flags, and its cgroup bounds memory and processes of the whole container.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import secrets
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ...spelling import did_you_mean
from ...trainer.ending import Refusal


SANDBOXES = ("bubblewrap", "docker")
NOBODY = 65534
START_SECONDS = 60.0  # for a sandbox and its first word, on a machine that has other work to do
STDERR_BYTES = 4000


@dataclass(frozen=True)
class Limits:
    """
    What a sandbox may use.

    Attributes:
        memory (`int`): Bytes of address space of each process; in docker bytes of the whole container.
        processes (`int`): Processes and threads, together.
        file_size (`int`): Bytes of one file.
        disk (`int`): Bytes of /tmp, which is in memory.
        files (`int`): Open files of each process.
        cpu_seconds (`int`): CPU time of each process.
        line (`int`): Bytes of one line that is read from it.
    """

    memory: int = 2 << 30
    processes: int = 4
    file_size: int = 32 << 20
    disk: int = 64 << 20
    files: int = 64
    cpu_seconds: int = 120
    line: int = 16 << 20


@dataclass(frozen=True)
class Order:
    """
    What a sandbox is asked to run.

    Attributes:
        command (`Sequence[str]`): The command, with a path that exists inside.
        limits ([`Limits`]): What it may use.
        see (`Sequence[Path]`): Files and folders that it may read, at the same path.
        variables (`dict`): All variables of its environment.
        hide (`Sequence[Path]`): Files and folders that are empty inside, where they are part of what is seen.
    """

    command: Sequence[str]
    limits: Limits
    see: Sequence[Path]
    variables: dict[str, str]
    hide: Sequence[Path]


class SandboxFailed(RuntimeError):
    """The sandbox itself did not work. It says nothing about what ran in it."""


class NoAnswer(Exception):
    """What runs in a sandbox gave no answer; one of the next three."""


class Ended(NoAnswer):
    """What ran in the sandbox has ended."""


class TimedOut(NoAnswer):
    """What runs in the sandbox did not answer in time."""


class TooLong(NoAnswer):
    """What runs in the sandbox has written a line that is too long."""


class Running:
    """
    A process in a sandbox, and the pipes to it. Nothing that it writes is kept beyond the line that is asked for:
    where nobody reads, it waits. A caller uses it as a context, which kills whatever is left.
    """

    def __init__(self, process: subprocess.Popen, limits: Limits, remove: Sequence[str] = ()):
        self.process, self.limits, self.remove, self.waiting = process, limits, remove, b""
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self.stdin, self.stdout, self.stderr = (
            pipe.fileno() for pipe in (process.stdin, process.stdout, process.stderr)
        )
        for pipe in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(pipe, False)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error) -> None:
        self.kill()

    def send(self, line: bytes, seconds: float) -> None:
        """Send a line. Raises [`TimedOut`] where the process does not read it, [`Ended`] where it no longer can."""
        rest, deadline = memoryview(line + b"\n"), time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self.stdin, selectors.EVENT_WRITE)
            while rest:
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise TimedOut
                try:
                    rest = rest[os.write(self.stdin, rest) :]
                except BrokenPipeError:
                    raise Ended from None

    def line(self, seconds: float) -> bytes:
        """
        Returns the next line, without its end. Raises [`TimedOut`], [`Ended`] or [`TooLong`], after which the caller
        kills the process.
        """
        pieces, size, deadline = [self.waiting], len(self.waiting), time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self.stdout, selectors.EVENT_READ)
            while b"\n" not in pieces[-1]:
                if size > self.limits.line:
                    raise TooLong
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise TimedOut
                piece = os.read(self.stdout, 1 << 16)
                if not piece:
                    raise Ended
                pieces.append(piece)
                size += len(piece)
        line, _, self.waiting = b"".join(pieces).partition(b"\n")
        return line

    def kill(self) -> str:
        """Ends the process with all that it has started, and returns the beginning of its standard error."""
        if self.process.returncode is not None:
            return ""  # it was ended before, and its number may be another's by now
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        text = b""
        with suppress(BlockingIOError):
            text = os.read(self.stderr, STDERR_BYTES)
        if self.remove:  # to kill docker's client leaves the container alone
            subprocess.run(self.remove, stdin=subprocess.DEVNULL, capture_output=True, timeout=START_SECONDS)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return text.decode(errors="replace").strip()


@dataclass
class Sandbox:
    """
    What bubblewrap and docker have in common: they turn a command into one that runs it inside.

    A process that is started in a sandbox dies with the thread that started it, and threads of a pool come and go.
    Hence one thread, which starts them all.
    """

    starter: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "sandbox"), repr=False)
    name = "none"

    def start(
        self,
        command: Sequence[str],
        limits: Limits | None = None,
        see: Sequence[Path] = (),
        environment: dict[str, str] | None = None,
        hide: Sequence[Path] = (),
    ) -> Running:
        """Starts a command in a sandbox of its own. [`Order`] says what the arguments are."""
        variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **(environment or {})}
        order = Order(command, limits or Limits(), see, variables, hide)
        return self.starter.submit(self._start, order).result()

    def _start(self, order: Order) -> Running:
        raise NotImplementedError

    def advice(self, complaint: str) -> str:
        """Returns what to do where the sandbox does not work."""
        raise NotImplementedError

    def broken(self, running: Running, error: Exception) -> Refusal:
        """Returns what is raised where something that must run in the sandbox gave no answer."""
        complaint = running.kill() or f"it said nothing ({type(error).__name__})"
        return Refusal(f"{self.name} does not work here: {complaint}. {self.advice(complaint)}")

    def check(self, python: str, see: Sequence[Path] = ()) -> None:
        """
        The graders call this before anything else runs. It tries a part of what the sandbox must prevent, inside of
        it, and raises a [`Refusal`] where the sandbox does not start or does not prevent it.

        Args:
            python (`str`): The interpreter inside.
            see (`Sequence[Path]`): The folders of that interpreter.
        """
        limits, nonce = Limits(), secrets.token_hex(8)
        with socket.create_server(("127.0.0.1", 0)) as server, tempfile.NamedTemporaryFile() as secret:
            asked = {"nonce": nonce, "port": server.getsockname()[1], "secret": secret.name}
            os.chmod(secret.name, 0o644)
            with self.start([python, "-I", "-S", "-c", PROBE, json.dumps(asked)], limits, see) as running:
                try:
                    found = json.loads(running.line(START_SECONDS))
                    problems = wrong_with(found, nonce, limits, self.name)
                except (NoAnswer, ValueError) as error:
                    raise self.broken(running, error) from None
        if problems:
            raise Refusal(
                f"{self.name} starts, but does not isolate: {'; '.join(problems)}. Code of a model is not run "
                f"without a sandbox. {self.advice('')}"
            )


def started(line: list[str], order: Order, remove: Sequence[str] = (), **options) -> Running:
    """Returns the process of a command line with pipes to it. Each sandbox starts its own with this."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, **options)
    return Running(process, order.limits, remove)


# Runs inside, and reports what it can reach. The filter of system calls is tried by `unshare`.
PROBE = """
import json, os, resource, socket, sys, ctypes
asked = json.loads(sys.argv[1])
def can(act):
    try:
        act()
    except OSError:
        return False
    return True
def status(name):
    with open("/proc/self/status") as lines:
        return next(line.split()[1] for line in lines if line.startswith(name + ":"))
def connect():
    socket.create_connection(("127.0.0.1", asked["port"]), 2).close()
def write(path):
    def act():
        with open(path, "w") as file:
            file.write("x")
        os.remove(path)
    return act
disk = os.statvfs("/tmp")
print(json.dumps({
    "nonce": asked["nonce"],
    "connects": can(connect),
    "reads": [path for path in ("/etc/passwd", "/etc/shadow", asked["secret"]) if can(lambda: open(path).close())],
    "writes": [path for path in ("/x", "/usr/x", "/etc/x", "/dev/x", "/proc/sys/kernel/x") if can(write(path))],
    "works": can(write("/tmp/x")),
    "capabilities": int(status("CapEff"), 16) | int(status("CapPrm"), 16),
    "privileges": status("NoNewPrivs") != "1",
    "user": os.getuid(),
    "unshares": ctypes.CDLL(None).unshare(0x10000000) == 0,
    "environment": sorted(os.environ),
    "disk": disk.f_blocks * disk.f_frsize,
    "memory": resource.getrlimit(resource.RLIMIT_AS)[1],
    "processes": resource.getrlimit(resource.RLIMIT_NPROC)[1],
    "file_size": resource.getrlimit(resource.RLIMIT_FSIZE)[1],
    "pids": len([name for name in os.listdir("/proc") if name.isdecimal()]),
}), flush=True)
"""


def wrong_with(found: dict, nonce: str, limits: Limits, name: str) -> list[str]:
    """Returns what [`PROBE`] could do inside of a sandbox that it should not have been able to do."""
    docker = name == "docker"
    reads = [path for path in found["reads"] if not (docker and path.startswith("/etc/"))]  # those of the image
    variables = sorted(set(found["environment"]) - {"PATH", "HOME", "LANG", "LC_CTYPE", "HOSTNAME", "PWD"})
    unbounded = (found["memory"], found["processes"]) != (limits.memory, limits.processes)
    wrong = {
        "it answers for another check": found["nonce"] != nonce,
        "it reaches the network of this machine": found["connects"],
        f"it reads {', '.join(reads)}": reads,
        f"it writes in {', '.join(str(Path(path).parent) for path in found['writes'])}": found["writes"],
        "it has no /tmp to work in": not found["works"],
        "it keeps rights that it must not have": found["capabilities"] or found["privileges"] or found["user"] == 0,
        "it makes a user namespace of its own": found["unshares"] and seccomp_filter() is not None,
        f"it sees the variables {', '.join(variables)}": variables,
        "its /tmp has no bound": found["disk"] > 2 * limits.disk,
        "its memory and processes have no bound": not docker and unbounded,
        "its files have no bound": found["file_size"] != limits.file_size,
        "it sees processes of this machine": found["pids"] > limits.processes + 4,
    }
    return [what for what, is_so in wrong.items() if is_so]


@dataclass
class Bubblewrap(Sandbox):
    """
    Runs commands in [bubblewrap](https://github.com/containers/bubblewrap).

    A user other than root gets a user namespace. Root does without one, because no limit of processes holds for root,
    whatever its name in a namespace: the command runs under the number of a user that nobody else has.

    Args:
        user_namespace (`bool`): Whether it gets one. By default, every user but root.
    """

    user_namespace: bool = field(default_factory=lambda: os.geteuid() != 0)

    name = "bubblewrap"

    def _start(self, order: Order) -> Running:
        program = shutil.which("bwrap")
        if program is None:
            raise Refusal(f"bubblewrap is not installed: there is no `bwrap` in PATH. {INSTALL}")
        rules, write = os.pipe()
        try:
            os.write(write, seccomp_filter() or b"")
            os.close(write)
            # --clearenv does not empty /proc/1/environ
            return started([program, *self.arguments(order, rules)], order, env={}, cwd="/", pass_fds=[rules])
        finally:
            os.close(rules)

    def arguments(self, order: Order, rules: int) -> list[str]:
        """Returns the whole command line, without the program. The filter of system calls comes from a descriptor."""
        limits = order.limits
        line = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        line += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--cap-drop", "ALL"]
        becomes = []
        if self.user_namespace:
            line += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
        else:
            user = str(2_000_000_000 + secrets.randbelow(100_000_000))
            line += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # setpriv gives them back
            becomes = ["/usr/bin/setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs"]
        line += ["--clearenv", *(word for item in order.variables.items() for word in ("--setenv", *item))]
        line += ["--ro-bind", "/usr", "/usr"]
        for name in ("/etc/ld.so.cache", "/etc/alternatives"):
            line += ["--ro-bind-try", name, name]
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            path = Path("/", name)
            if path.is_symlink():
                line += ["--symlink", os.readlink(path), str(path)]
            elif path.is_dir():
                line += ["--ro-bind", str(path), str(path)]
        line += ["--proc", "/proc", "--dev", "/dev"]
        for name in ("/dev/shm", "/tmp"):
            line += ["--perms", "1777", "--size", str(limits.disk), "--tmpfs", name]
        made = {Path("/"), Path("/tmp")}
        for path in order.see:
            for parent in reversed(path.parents):  # bubblewrap would make those of a closed home closed
                if parent not in made and not any(parent.is_relative_to(other) for other in order.see):
                    line += ["--perms", "0755", "--dir", str(parent)]
                    made.add(parent)
            line += ["--ro-bind", str(path), str(path)]
        for path in order.hide:
            if path.exists() and any(path.is_relative_to(other) for other in (Path("/usr"), *order.see)):
                line += ["--tmpfs", str(path)] if path.is_dir() else ["--ro-bind", "/dev/null", str(path)]
        line += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
        if seccomp_filter() is not None:
            line += ["--seccomp", str(rules)]
        bounds = [f"--as={limits.memory}", f"--nproc={limits.processes}", f"--fsize={limits.file_size}"]
        bounds += [f"--nofile={limits.files}", f"--cpu={limits.cpu_seconds}", "--core=0"]
        return [*line, *becomes, "/usr/bin/prlimit", *bounds, *order.command]

    def advice(self, complaint: str) -> str:
        """Returns what to do where bubblewrap does not work."""
        if "Unknown option" in complaint:
            return "bubblewrap 0.7 or newer is needed."
        if "prlimit" in complaint or "setpriv" in complaint:
            return "The programs `prlimit` and `setpriv` of util-linux must be in /usr/bin."
        if any(word in complaint for word in ("namespace", "uid map", "Operation not permitted", "Permission denied")):
            return (
                "User namespaces seem to be switched off. Root can switch them on: "
                "`sysctl user.max_user_namespaces=10000`, on Debian `sysctl kernel.unprivileged_userns_clone=1`, "
                "on Ubuntu `sysctl kernel.apparmor_restrict_unprivileged_userns=0`. A container needs the right to "
                "make namespaces (docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
                "--cap-add SYS_ADMIN), or grade on the machine itself. Or use --sandbox docker."
            )
        return "Or use --sandbox docker."


INSTALL = "`apt-get install bubblewrap` or `dnf install bubblewrap` installs it; or use --sandbox docker."


@dataclass
class Docker(Sandbox):
    """
    Runs each command in a container of its own.

    Args:
        image (`str`): The image, which is never pulled.
    """

    image: str = "fire-opd-evalplus"
    name = "docker"

    def _start(self, order: Order) -> Running:
        program = shutil.which("docker")
        if program is None:
            raise Refusal("docker is not installed: there is no `docker` in PATH. Or use --sandbox bubblewrap.")
        container = f"fire-opd-{secrets.token_hex(8)}"
        remove = [program, "rm", "--force", container]
        return started([program, *self.arguments(order, container)], order, remove)

    def arguments(self, order: Order, container: str) -> list[str]:
        """Returns the whole command line, without the program."""
        limits = order.limits
        line = ["run", "--rm", "--interactive", "--init", "--pull", "never", "--name", container]
        line += ["--network", "none", "--ipc", "private", "--read-only", "--cap-drop", "ALL"]
        line += ["--security-opt", "no-new-privileges", "--user", f"{NOBODY}:{NOBODY}"]
        # The container's init and the command itself count as well.
        line += ["--pids-limit", str(limits.processes + 1), "--memory", str(limits.memory)]
        line += ["--memory-swap", str(limits.memory), "--cpus", "1", "--log-driver", "none"]
        line += ["--tmpfs", f"/tmp:rw,nosuid,nodev,mode=1777,size={limits.disk}", "--shm-size", str(limits.disk)]
        line += ["--ulimit", f"fsize={limits.file_size}", "--ulimit", f"nofile={limits.files}"]
        line += ["--ulimit", f"cpu={limits.cpu_seconds}", "--ulimit", "core=0", "--workdir", "/tmp"]
        for name, value in order.variables.items():
            line += ["--env", f"{name}={value}"]
        for path in order.see:
            line += ["--mount", f"type=bind,source={path},target={path},readonly"]
        return [*line, "--entrypoint", order.command[0], self.image, *order.command[1:]]

    def advice(self, complaint: str) -> str:
        """Returns what to do where docker does not work."""
        if "daemon" in complaint:
            return "Start the daemon, or use --sandbox bubblewrap."
        if "No such image" in complaint or "Unable to find image" in complaint:
            return f"Build the image {self.image} as docs/benchmarks.md says, or use --sandbox bubblewrap."
        return "Or use --sandbox bubblewrap."


def make_sandbox(name: str | None) -> Sandbox:
    """Returns the sandbox of that name. The command calls this for tasks of code, which are refused without one."""
    if name is None:
        raise Refusal(
            "this task runs code that a model has written, which needs a sandbox: give --sandbox bubblewrap "
            "(apt-get install bubblewrap) or --sandbox docker."
        )
    if name not in SANDBOXES:
        raise Refusal(f"--sandbox {name!r} is none of {', '.join(SANDBOXES)}.{did_you_mean(name, SANDBOXES)}")
    return Bubblewrap() if name == "bubblewrap" else Docker()


# The filter of system calls: names, each with its number on x86-64 and on arm64. What is not named is allowed. No
# limit of a process counts the memory of memfd_create, memfd_secret and shmget.
X86_64, AARCH64 = 0xC000003E, 0xC00000B7
REFUSED_CALLS = """
ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271  unshare 272 97  setns 308 268  mount 165 40
umount2 166 39  pivot_root 155 41  chroot 161 51  fsopen 430 430  open_tree 428 428  move_mount 429 429
mount_setattr 442 442  add_key 248 217  request_key 249 218  keyctl 250 219  bpf 321 280
perf_event_open 298 241  userfaultfd 323 282  io_uring_setup 425 425  open_by_handle_at 304 265
memfd_create 319 279  memfd_secret 447 447  shmget 29 194  msgget 68 186  semget 64 190  personality 135 92
"""
CLONE = (56, 220)
CLONE3 = (435, 435)
NEW_NAMESPACES = 0x7E020000  # all CLONE_NEW* flags of clone, without CLONE_NEWTIME, which is no flag of clone
EPERM, ENOSYS = 1, 38


def seccomp_filter() -> bytes | None:
    """
    Returns the filter for bubblewrap's `--seccomp`, or `None` on a machine for which there is no table.

    A refused call gives EPERM. `clone3` gives ENOSYS, because its flags lie in memory, where a filter cannot look; the
    C library then uses `clone`, whose flags for namespaces are refused.
    """
    column = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
    if column is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent, kill = 0x7FFF0000, 0x00050000 | EPERM, 0x00050000 | ENOSYS, 0x80000000
    rules = [(load, 0, 0, 4), (equal, 1, 0, (X86_64, AARCH64)[column]), (end, 0, 0, kill), (load, 0, 0, 0)]
    if column == 0:  # the second set of numbers of x86-64, with 32 bits
        rules += [(at_least, 0, 1, 0x40000000), (end, 0, 0, kill)]
    for number in map(int, REFUSED_CALLS.split()[1 + column :: 3]):
        rules += [(equal, 0, 1, number), (end, 0, 0, refuse)]
    rules += [(equal, 0, 1, CLONE3[column]), (end, 0, 0, absent)]
    rules += [(equal, 0, 3, CLONE[column]), (load, 0, 0, 16), (any_bit, 0, 1, NEW_NAMESPACES), (end, 0, 0, refuse)]
    rules += [(end, 0, 0, allow)]
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)

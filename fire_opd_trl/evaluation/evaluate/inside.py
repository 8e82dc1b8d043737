"""
What runs inside of the sandboxes of [`code`], by the interpreter of evalplus: a program under test, and its judge.

This file is given to that interpreter as text. It imports nothing of this package, and evalplus in the judge alone.

The program under test gets the inputs of the tests, one after the other, and gives back what it returns, as text that
describes plain data. It is never in one process, nor in one sandbox, with what it should have returned. The judge has
that, and compares: it gives evalplus' own check a function that returns what the program under test has returned.
"""

import collections.abc
import fractions
import json
import os
import signal
import sys
import types
from typing import Any


READY = b"ready"
SANITIZE_SECONDS = 10
PLAIN = (bool, str, float, type(None))
SCALARS: Any = (int, float, str)
BUILD: Any = {"tuple": tuple, "set": set, "frozenset": frozenset, "list": list, "iterator": iter}
DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()


class NoPlainData:
    """Stands for what a program has returned that is no plain data. It is not None, and equals nothing."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other):
        return False


def encode(value):
    """
    Returns a value as JSON can write it, so that [`decode`] gives back an equal one of the same type.

    Instances of a class that inherits from a plain one become plain. What an iterator yields is read.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is int:
        return value if abs(value) < 1 << 53 else {"int": hex(value)}  # hexadecimal digits have no limit
    if kind is list:
        return [encode(item) for item in value]
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, (numpy.generic, numpy.ndarray)):
        if value.dtype.name not in DTYPES:
            return {"other": kind.__name__}
        items = [encode(item) for item in value.ravel().tolist()]
        return {"scalar" if issubclass(kind, numpy.generic) else "array": [value.dtype.name, list(value.shape), items]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind in (bytes, bytearray):
        return {kind.__name__: value.hex()}
    if kind is range:
        return {"range": [encode(part) for part in (value.start, value.stop, value.step)]}
    if kind is fractions.Fraction:
        return {"fraction": [encode(value.numerator), encode(value.denominator)]}
    if issubclass(kind, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    for plain in (tuple, set, frozenset, list):
        if issubclass(kind, plain):
            return {plain.__name__: [encode(item) for item in plain.__iter__(value)]}
    for scalar in SCALARS:
        if issubclass(kind, scalar):
            return encode(scalar.__add__(value, scalar()))
    if kind in (type({}.keys()), type({}.items())):
        return {"keys": [encode(item) for item in value]}
    if issubclass(kind, (collections.abc.Iterator, collections.abc.ValuesView, collections.deque)):
        return {"iterator": [encode(item) for item in value]}
    return {"other": kind.__name__}


def decode(value):
    """Returns the value that [`encode`] has described. Raises where nothing is described."""
    if type(value) is list:
        return [decode(item) for item in value]
    if type(value) is not dict:
        return value
    ((kind, content),) = value.items()
    if kind == "int":
        return int(content, 16)
    if kind == "complex":
        return complex(*content)
    if kind in ("bytes", "bytearray"):
        return (bytes if kind == "bytes" else bytearray).fromhex(content)
    if kind == "range":
        return range(*decode(content))
    if kind == "fraction":
        return fractions.Fraction(*decode(content))
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    if kind == "keys":
        return dict.fromkeys(decode(content)).keys()
    if kind in BUILD:
        return BUILD[kind](decode(content))
    if kind in ("scalar", "array"):
        import numpy

        name, shape, items = content
        if name not in DTYPES:
            raise ValueError(name)
        array = numpy.array(decode(items), dtype=name).reshape(shape)
        return array[()] if kind == "scalar" else array
    return NoPlainData()


class Link:
    """The pipes to the process outside, taken away from whatever reads the standard input or prints."""

    def __init__(self):
        self.source, self.sink = os.fdopen(os.dup(0), "rb"), os.dup(1)
        self.silence(0, 1)

    def silence(self, *descriptors):
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in descriptors:
            os.dup2(null, descriptor)
        os.close(null)

    def send(self, line):
        rest = memoryview(line + b"\n")
        while rest:
            rest = rest[os.write(self.sink, rest) :]

    def receive(self):
        line = self.source.readline()
        if not line:  # nobody is there any more
            os._exit(0)
        return json.loads(line)


def run_program():
    """
    Runs the program under test, in a sandbox of its own. An answer is a line: the number of the order, one word, and
    perhaps data. The program can write such lines itself: they say what it has returned, and nothing else.
    """
    link = Link()
    link.silence(2)
    link.send(READY)
    order = link.receive()
    names: dict[str, Any] = {}
    try:
        code = compile(order["code"], "<program>", "exec")
    except BaseException:
        word = "unparsed"
    else:
        try:
            exec(code, names)
            function = names[order["entry_point"]]
            word = "loaded"
        except BaseException:
            word = "raised"
    link.send(f"{order['nonce']} {word}".encode())
    while True:
        order = link.receive()
        try:
            data = json.dumps(encode(function(*decode(order["input"]))))
            answer = f"{order['nonce']} returned {data}"
        except BaseException:
            answer = f"{order['nonce']} raised"
        link.send(answer.encode())


class Judge:
    """Evalplus with its problems, in a sandbox of its own. No code of a model runs here."""

    def __init__(self, dataset, seconds, factor):
        # evalplus.data imports it for a benchmark of speed, which is none of ours: 200 MB, and a second.
        datasets: Any = types.ModuleType("datasets")
        datasets.load_dataset = None
        sys.modules["datasets"] = datasets
        import evalplus.eval
        import evalplus.gen.util
        import evalplus.sanitize  # noqa: F401  here, and not in each process that is forked
        from evalplus.data import get_human_eval_plus, get_mbpp_plus

        self.dataset, self.seconds, self.factor = dataset, seconds, factor
        self.problems = {"humaneval": get_human_eval_plus, "mbpp": get_mbpp_plus}[dataset]()
        self.expected = {}

    def reference(self, name, part):
        """Returns what the reference solution returns for the inputs of a problem, and the seconds that it takes."""
        from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
        from evalplus.gen.util import trusted_exec

        if (name, part) not in self.expected:
            problem = self.problems[name]
            self.expected[name, part] = trusted_exec(
                problem["prompt"] + problem["canonical_solution"],
                problem[f"{part}_input"],
                problem["entry_point"],
                record_time=True,
                output_not_none=self.dataset == "mbpp" and problem["entry_point"] in MBPP_OUTPUT_NOT_NONE_TASKS,
            )
        return self.expected[name, part]

    def inputs(self, name, part):
        """Returns the inputs of a problem, and the limit of each in seconds."""
        _, seconds = self.reference(name, part)
        inputs = [json.dumps(encode(list(item))) for item in self.problems[name][f"{part}_input"]]
        return {"inputs": inputs, "limits": [max(self.seconds, self.factor * each) for each in seconds]}

    def check(self, name, part, outputs):
        """Returns the verdict of evalplus on what a program has returned."""
        from evalplus.eval import untrusted_check

        expected, seconds = self.reference(name, part)
        problem, rest = self.problems[name], iter(outputs)
        replay: Any = types.ModuleType("replay")
        replay.returned = lambda *inputs: decode(json.loads(next(rest)))
        sys.modules["replay"] = replay  # the process that evalplus forks imports it
        verdict, _ = untrusted_check(
            self.dataset,
            f"from replay import returned as {problem['entry_point']}",
            problem[f"{part}_input"],
            problem["entry_point"],
            expected=expected,
            atol=problem["atol"],
            ref_time=seconds,
            fast_check=True,
            min_time_limit=self.seconds,
            gt_time_limit_factor=self.factor,
        )
        return {"verdict": verdict}

    def sanitize(self, name, text):
        """
        Returns the program in a text as evalplus finds it: the imports, and what the function needs. The text comes
        from a model, and is parsed in a process of its own, for a limited time: where that fails, it stays as it is.
        """
        read, write = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(SANITIZE_SECONDS)
            try:
                program = found_program(text, self.problems[name]["entry_point"])
                with os.fdopen(write, "wb") as pipe:
                    pipe.write(json.dumps(program).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        try:
            return {"program": json.loads(answer)}
        except ValueError:
            return {"program": text}


def found_program(text, entry_point):
    """Returns what evalplus makes of a text. It looks for the longest run of lines that parses: most often, all."""
    from evalplus import sanitize

    lines = text.strip("\n")
    if sanitize.syntax_check(lines):
        sanitize.code_extract = lambda whole: whole
    return sanitize.sanitize(lines, entry_point)


def judge(dataset, seconds, factor):
    """Answers orders, one at a time, until nobody gives any."""
    import multiprocessing

    link = Link()
    multiprocessing.set_start_method("fork")
    here = Judge(dataset, float(seconds), float(factor))
    link.silence(2)  # until here whoever waits can read what went wrong
    link.send(READY)
    while True:
        order = link.receive()
        try:
            answer = getattr(here, order.pop("do"))(**order)
        except Exception as error:  # a reference solution that fails, say
            answer = {"failed": f"{type(error).__name__}: {error}"}
        link.send(json.dumps(answer).encode())


if __name__ == "__main__":
    if sys.argv[1] == "program":
        run_program()
    else:
        judge(*sys.argv[2:])

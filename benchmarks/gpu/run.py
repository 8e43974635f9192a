"""The sections of a GPU run, one process each, most important first, inside the seconds given (`run.sh` starts this).

Every section has a limit, stretched or shrunk with the seconds given; what one does not use, later ones may. Whatever
hangs is killed with all its processes. `results.json` is written anew after each section and holds what killed ones
had found until then. Nothing but Python's own modules is imported here, so that a broken package is a section's fault.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LOG_BYTES = 12 * 2**20  # of a file in OUT


@dataclass
class Section:
    """A command with its limit.

    Args:
        name: In the table of results.
        words: The command, after the interpreter.
        limit: Seconds, of 600 for all.
        read: Its figures, from what it wrote; called as often as wanted, also after a kill.
        env: Further environment variables.
    """

    name: str
    words: list[str]
    limit: float
    read: Callable[[], dict[str, Any]] = dict
    env: dict[str, str] = field(default_factory=dict)


class Sections:
    """What is run, in its order, on a device and in sizes of the full run or of the dry one."""

    def __init__(self, out: Path, scratch: Path, files: Path, dry: bool) -> None:
        self.out, self.scratch, self.files, self.dry = out, scratch, files, dry
        self.device = "cpu" if dry else "cuda"
        self.model = "random:llama-tiny" if dry else "random:llama-7b"
        self.dtypes = ("float32",) if dry else ("float32", "bfloat16")

    def all(self) -> Iterator[Section]:
        """Most important first; the limits add up to less than 600."""
        yield self.own("matmul", 25, "matmul", "--size 64")
        yield self.tests("gpu tests", 75, "tests/gpu -m gpu -n 0", "tests/gpu -m gpu -n 0")
        device = "tests/unit tests/runs -n 12 --dist loadfile"
        yield self.tests("tests on the device", 120, device, "tests/unit/benchmarks/test_dispatched.py -n 0")
        small = "--lanes 1 2 --steps 2 --layer 3"
        yield self.own("rome v*", 60, "vstar --way rome --lanes 1 8 32 64", small)
        yield self.own("memit v*", 45, "vstar --way memit --lanes 1 32 128", small)
        small = "--requests 2 --lanes 2 --rounds 1"
        for only in ("steps", "trace"):
            words = f"--only {only} --requests 4 --lanes 4 --rounds 2"
            yield self.script(f"pac {only}", 35, "pac_speed", words, f"--only {only} {small}")
        words = "--requests 16 --lanes 16 --slow 1 --banks 1 --repeats 2"
        small = "--requests 2 --lanes 2 --steps 2 --evaluations 2 --banks 1 --repeats 1 --batch 1 8"
        yield self.script("rep", 50, "rep_speed", words, small)
        yield self.own("scoring", 35, "scoring", "--records 1")
        yield self.own("statistics", 30, "statistics", "--layers 3 --tokens 2048 --batch-tokens 512")
        for dtype in self.dtypes:
            yield self.edits(dtype, 45)

    def own(self, name: str, limit: float, words: str, small: str) -> Section:
        """A section of `benchmarks.gpu.sections`; `small` are further words of the dry run."""
        file = self.scratch / f"{name.replace(' ', '_').replace('*', '')}.json"
        more = ["--model", self.model, "--device", self.device, "--out", str(file)]
        more += ["--dtype", "float32", *small.split()] if self.dry else []
        return Section(name, ["-m", "benchmarks.gpu.sections", *words.split(), *more], limit, lambda: _json(file))

    def script(self, name: str, limit: float, script: str, words: str, small: str) -> Section:
        """A script of benchmarks/speed, which writes its figures beside the committed ones."""
        saved = f"gpu_run_{name.replace(' ', '_')}"
        more = ["--model", self.model, "--device", self.device, "--save", saved]
        more += ["--layer", "3", "--dtype", "float32"] if self.dry else ["--layer", "5", "--dtype", "bfloat16"]
        sizes, file = (small if self.dry else words).split(), RESULTS / f"{saved}.json"
        return Section(name, [f"benchmarks/speed/{script}.py", *sizes, *more], limit, lambda: _taken(file))

    def tests(self, name: str, limit: float, words: str, small: str) -> Section:
        """Tests, whose failures are written to OUT as they come."""
        failures, counts = self.out / f"failures_{name.replace(' ', '_')}.txt", self.scratch / f"{name}.json"
        env = {"FAILURES": str(failures), "COUNTS": str(counts), "KEDIT_TEST_DEVICE": self.device}
        plugin = ["-p", "benchmarks.gpu.failures", "-p", "no:cacheprovider", "--tb=short"]
        chosen = (small if self.dry else words).split()
        return Section(name, ["-m", "pytest", *plugin, *chosen], limit, lambda: _json(counts), env)

    def edits(self, dtype: str, limit: float) -> Section:
        """Runs of methods on SmolLM2, side by side, compared with those of a CPU."""
        file = self.scratch / f"edits_{dtype}.json"
        words = ["-m", "benchmarks.gpu.edits", "--dtype", dtype, "--out", str(file), "--scratch", str(self.scratch)]
        words += ["--files", str(self.files), *(["--dry"] if self.dry else [])]
        return Section(f"edits in {dtype}", words, limit, lambda: _json(file))


def run(section: Section, seconds: float, log: Path) -> dict[str, Any]:
    """One section: what became of it, and its figures."""
    began = time.monotonic()
    with log.open("ab") as file:
        if file.tell() > LOG_BYTES:
            file.truncate(LOG_BYTES // 2)
        file.write(f"\n== {section.name}: at most {seconds:.0f} s\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, *section.words], cwd=ROOT, env=os.environ | section.env, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
        try:
            status: int | str = process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            _end(process)
    figures = section.read()
    return {"status": status, "seconds": round(time.monotonic() - began, 1), "limit": round(seconds, 1), **figures}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a section's processes, those that it left behind too."""
    for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def _json(path: Path) -> dict[str, Any]:
    """Figures in a file; none where it is not there, or not whole."""
    try:
        return {"figures": json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError):
        return {}


def _taken(path: Path) -> dict[str, Any]:
    """As `_json`; the file goes."""
    found = _json(path)
    path.unlink(missing_ok=True)
    return found


def _write(path: Path, content: str) -> None:
    scratch = path.with_suffix(".part")
    scratch.write_text(content, encoding="utf-8")
    os.replace(scratch, path)


def table(results: dict[str, Any]) -> str:
    """A line for each section, and its figures' numbers below."""
    lines = []
    for name, result in results.items():
        lines.append(f"{name}: {'done' if result['status'] == 0 else result['status']}, {result['seconds']} s")
        lines += [f"    {key}: {value}" for key, value in _leaves(result.get("figures", {}))]
    return "\n".join(lines)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Numbers of nested figures by their full name, without settings and where the file came from."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("settings", "provenance", "command", "date", "cpu_s", "peak_rss_gib", "peak_rss_gib_so_far"):
                yield from _leaves(inner, f"{name} {key}".strip())
    elif isinstance(value, bool | int | str):
        yield name, str(value)
    elif isinstance(value, float):
        yield name, f"{value:.4g}"


def _begin_with_model(log: Path) -> subprocess.Popen[bytes]:
    """SmolLM2 takes a minute of a CPU to be made ready, while the first sections run."""
    words = [sys.executable, "-c", "from kedit.model.pretrained import fetch; fetch('smollm2-135m')"]
    with log.open("ab") as file:
        env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(words, cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True)


def main() -> None:
    """Run the sections one after the other, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU, to try this script")
    parser.add_argument("--only", nargs="*", default=[], help="names of sections; all without it")
    a = parser.parse_args()
    end = time.monotonic() + a.seconds - 6  # to write, and to end what hangs
    os.environ["KEDIT_CACHE"] = str(a.scratch / "cache")
    stretch, results = a.seconds / 600, {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the section under way is ended then as well
    model = None if a.dry else _begin_with_model(a.out / "log.txt")
    for section in Sections(a.out, a.scratch, a.files, a.dry).all():
        left = end - time.monotonic()
        if a.only and section.name not in a.only:
            continue
        if left < 3:
            results[section.name] = {"status": "no time left", "seconds": 0}
        else:
            results[section.name] = run(section, min(section.limit * max(stretch, 0.1), left), a.out / "log.txt")
        _write(a.out / "results.json", json.dumps(results, indent=1))
        _write(a.out / "summary.txt", table(results) + "\n")
        print(f"{section.name}: {results[section.name]['status']}, {results[section.name]['seconds']} s", flush=True)
    if model is not None:
        _end(model)
    print(table(results))
    if a.dry and any(result["status"] not in (0, 5) for result in results.values()):  # 5: pytest, without a test
        sys.exit("the dry run failed; see log.txt")


if __name__ == "__main__":
    main()

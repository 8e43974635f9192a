"""What the benchmarks share: machine, models (also random ones of real shapes), clocks, result files.

Needs torch and transformers alone, so that it runs on a bare GPU machine. The scripts put the repository's root on
`sys.path` before they import this, so that each runs as a file and as a module (`python -m benchmarks.speed.NAME`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kedit.forward.binding import load_lm, wrap_lm
from kedit.model.lm import LM, LMConfig
from kedit.plan.shape import bytes_tokenizer
from kedit.request import EditRequest
from kedit.runtime.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent

SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "llama-tiny": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 128, "intermediate_size": 344,
        "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
    },
}  # fmt: skip


def get_lm(name: str, dtype: str, device: str) -> LM:
    """A model by alias, folder or hub id, or `random:SHAPE` with random weights of a real shape."""
    if not name.startswith("random:"):
        return load_lm(LMConfig(name=name, dtype=dtype), device=device)  # type: ignore[arg-type]
    shape = dict(SHAPES[name.removeprefix("random:")])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return wrap_lm(model.eval().requires_grad_(False), bytes_tokenizer(), name)


def read_requests(path: Path | None, n: int) -> list[EditRequest]:
    """`n` requests of a file that kedit reads, or made up here."""
    if path is None:
        names = [
            "Berlin",
            "The Space Needle",
            "Lake Geneva",
            "Mount Fuji",
            "Oslo",
            "The Danube",
            "Rio",
            "Petra",
        ]
        return [
            EditRequest(str(i), "The place called {} lies in", f"{names[i % len(names)]} {i}", "Peru", "Chad")
            for i in range(n)
        ]
    from kedit.data import read_robust

    return [record.request for record in read_robust(str(path))][:n]


def speed_parser(about: str | None, no_data: str) -> argparse.ArgumentParser:
    """A parser with the options that the benchmarks of edits' speed share.

    Args:
        about: The benchmark's docstring.
        no_data: What it takes where no `--data` is given.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder, hub id or random:llama-7b")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help=f"a robust-query file; {no_data} without it")
    parser.add_argument("--layer", type=int, default=5, help="the edited layer")
    parser.add_argument("--save", help="name of the figures under benchmarks/results")
    return parser


class Clock:
    """CPU seconds of this process and wall seconds between construction and `stop`."""

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"
        self._sync()
        self.cpu0, self.wall0 = time.process_time(), time.perf_counter()

    def stop(self) -> dict[str, float]:
        """`{"cpu_s", "wall_s"}`; waits for the GPU."""
        self._sync()
        return {"cpu_s": time.process_time() - self.cpu0, "wall_s": time.perf_counter() - self.wall0}

    def _sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def timed(run: Callable[[], Any], device: str) -> tuple[Any, dict[str, float]]:
    """Result and seconds of `run`, and on a GPU the peak memory it took."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(device)
    result = run()
    seconds = clock.stop()
    if device != "cpu":
        seconds["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return result, seconds


def peak_rss_gib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write figures with machine and versions to benchmarks/results/NAME.json."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    script = Path(sys.argv[0]).resolve()
    words = [str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name, *sys.argv[1:]]
    written = {"date": datetime.date.today().isoformat(), "command": " ".join(["python", *words])}
    written = by_name(written | figures | {"provenance": provenance()})
    path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return path


def by_name(value: Any) -> Any:
    """`value` with the files of this machine in it called by their names: no absolute paths in what is committed."""
    if isinstance(value, dict):
        return {key: by_name(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [by_name(one) for one in value]
    if isinstance(value, Path):
        value = str(value)
    return re.sub(r"(?<![^\s=,])/[^\s,]*/", "", value) if isinstance(value, str) else value

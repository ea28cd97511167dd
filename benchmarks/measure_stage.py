"""Run a stage and measure its time, its memory and, in the same process, the rate of matrix products.

    python -m benchmarks.measure_stage STAGE RESULT ARGUMENT...

STAGE is the name of a stage without .py, RESULT the JSON file to write. `benchmarks.bench_stages` calls this.
"""

from __future__ import annotations

import importlib
import itertools
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import torch

from benchmarks.sections import megabytes
from deepmi import batches, run_log, runtime


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rates(device: torch.device, precision: str, seconds: float) -> list[float]:
    """Rates of successive matrix products, operations per second."""
    size, repeats = (8192, 10) if device.type == "cuda" else (2048, 1)
    a = torch.randn(size, size, device=device).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    product = torch.empty_like(a)
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or not rates:
        begin = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, a, out=product)
        wait(device)
        rates.append(repeats * 2 * size**3 / (time.perf_counter() - begin))
    return rates


def measure(stage: str, argv: list[str]) -> dict:
    """Run a stage.

    Returns:
        `seconds` of the stage without imports, and `passes`, the seconds of these in `in_batches`; `epochs`, its log
        with the median `rate` of the matrix products around each epoch; `rate`, that of all products; peak `memory` in
        MB, on a CPU without mapped files.
    """
    module = importlib.import_module(stage)
    args = module.get_args_parser().parse_args(argv)
    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(device, args.precision)
    measured = {"passes": 0.0, "memory": 0.0, "epochs": []}
    rates = [product_rates(device, precision, 1.0)]

    def watch_memory() -> None:
        while True:
            measured["memory"] = max(measured["memory"], megabytes("RssAnon"))
            time.sleep(0.02)

    def measure_rate(seconds: float) -> None:
        if device.type == "cuda":  # the peak of the stage, without the matrix products
            measured["memory"] = max(measured["memory"], torch.cuda.max_memory_allocated(device) / 2**20)
        rates.append(product_rates(device, precision, seconds))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def measured_end_epoch(self: run_log.TrainingRun, record: dict, *more: object) -> None:
        end_epoch(self, record, *more)
        measure_rate(min(1.0, record["seconds"] / 2))  # between the epochs: both see the same state of the machine
        measured["epochs"].append(record | {"rate": statistics.median(rates[-2] + rates[-1])})

    def measured_in_batches(*given: object, **more: object) -> tuple:
        begin = time.perf_counter()
        found = in_batches(*given, **more)
        wait(device)
        measured["passes"] += time.perf_counter() - begin
        return found

    end_epoch, in_batches = run_log.TrainingRun.end_epoch, batches.in_batches
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        threading.Thread(target=watch_memory, daemon=True).start()
    with (
        mock.patch.object(run_log.TrainingRun, "end_epoch", measured_end_epoch),
        mock.patch.object(module, "in_batches", measured_in_batches),
    ):
        begin = time.perf_counter()
        module.main(args)
        wait(device)
    measured["seconds"] = time.perf_counter() - begin
    measure_rate(1.0)
    return measured | {"rate": statistics.median(itertools.chain(*rates))}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(measure(sys.argv[1], sys.argv[3:])))

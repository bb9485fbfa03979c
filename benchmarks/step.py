"""The joint step of `InfoXLMTrainer` beside the same in plain transformers (N1), in turn, in one process.

    python -m benchmarks.step                               # base geometry, B = 4, L = 256, fp32 for both
    python -m benchmarks.step --dtype bfloat16              # ours in bf16, N1 in fp32
    python -m benchmarks.step --dtype bfloat16 --baseline_dtype bfloat16
    python -m benchmarks.step --baseline_defaults           # N1 with torch's own settings, in its own process
    python -m benchmarks.step --only ours --batch_size 8    # one alone, for its peak memory

Both get the same batches, masks and first weights, so their losses must agree step by step; they are printed
side by side. What is timed of ours is the Trainer's whole loop: reading and collating the batch included.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import TrainerCallback

from benchmarks.baselines import PlainTransformers, synchronize
from benchmarks.measure import (
    DTYPES,
    Elsewhere,
    Samples,
    make_parser,
    measured_peak,
    memory_peaks,
    run_benchmark,
)
from benchmarks.workload import GEOMETRIES, Workload
from modeling_infoxlm.data.batches import PretrainingCollator
from modeling_infoxlm.runs.process import configure_process
from modeling_infoxlm.training.arguments import ContrastArguments
from modeling_infoxlm.training.throughput import count_tokens
from modeling_infoxlm.training.trainer import InfoXLMTrainer

HEAP_GROWTH = 2**30  # bytes: the gradient of XLM-R base's table, and some more
OBJECTIVES = ("mlm", "tlm", "xlco")
Step = Callable[[Mapping[str, Any]], tuple[float, dict[str, float], dict[str, float]]]  # see `timed_step`
UPDATE = ("clip", "optimizer", "momentum")
SIZES = ("vocab_size", "queue_size", "batch_size", "max_length", "warmup", "steps")


@dataclass
class Run:
    """Of one side: seconds of each counted step and of its phases, and mean losses of every step, in nats."""

    samples: Samples = field(default_factory=Samples)
    phases: list[dict[str, float]] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)

    def add(self, seconds: float, phases: dict[str, float], losses: dict[str, float], counted: bool) -> None:
        """Keep a step."""
        self.losses.append(losses)
        if counted:
            self.samples.seconds.append(seconds)
            self.phases.append(phases)

    def summary(self) -> dict[str, Any]:
        """What goes into a result file."""
        medians = {name: Samples([step[name] for step in self.phases]).median for name in self.phases[0]}
        return {**self.samples.summary(), "phases_s": medians}


class _TimedTrainer(InfoXLMTrainer):
    """The trainer as it is; only notes what a step saw and how long its parts took."""

    last_batch: dict[str, Any]

    def __init__(self, *args: Any, initial_queue: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial_queue: Tensor | None = initial_queue
        self.seconds: dict[str, float] = {}
        self.losses: dict[str, list[Any]] = {}
        self._plain_model().register_forward_hook(lambda module, args, losses: self._note(losses))

    def restore(self, checkpoint: Path | None) -> None:
        super().restore(checkpoint)
        assert self.contrast is not None and self.initial_queue is not None
        self.contrast.queue.enqueue(self.initial_queue.to(self.args.device))
        self.initial_queue = None  # 402 MB at base size that a run does not have
        for owner, method, phase in (
            (self.contrast, "encode", "xlco key"),
            (self._plain_model(), "forward", "forward"),
            (self.accelerator, "backward", "backward"),
            (self, "_clip_grad_norm", "clip"),
            (self, "update_momentum", "momentum"),
            (self.contrast, "enqueue", "queue"),
        ):
            setattr(owner, method, self._timed(getattr(owner, method), phase))
        wrapped: Any = self.optimizer  # by accelerate
        wrapped.optimizer.register_step_pre_hook(lambda *_: self._begin("optimizer"))
        wrapped.optimizer.register_step_post_hook(lambda *_: self._end("optimizer"))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self.last_batch = inputs
        return super().training_step(model, inputs, num_items_in_batch)

    def _timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._begin(phase)
            result = function(*args, **kwargs)
            self._end(phase)
            return result

        return timed

    def _begin(self, phase: str) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) - time.perf_counter()

    def _end(self, phase: str) -> None:
        synchronize()
        self.seconds[phase] += time.perf_counter()

    def _note(self, losses: Mapping[str, Any]) -> None:
        for name, loss in losses.items():
            sums = self.losses.setdefault(name, [0.0, 0])
            sums[0] = sums[0] + loss.loss_sum.detach()
            sums[1] += loss.num_items

    def pop(self) -> tuple[dict[str, float], dict[str, float]]:
        """Phases and mean losses of the last step."""
        losses = {name: float(total) / count for name, (total, count) in self.losses.items()}
        seconds, self.seconds, self.losses = self.seconds, {}, {}
        return seconds, losses


class _Turns(TrainerCallback):
    """After each step of the trainer the baseline, if any, takes its turn with the same batch."""

    def __init__(self, workload: Workload, baseline: Step | None) -> None:
        self.workload, self.baseline = workload, baseline
        self.ours, self.theirs = Run(), Run()
        self.trainer: Any = None
        self.tokens: list[float] = []
        self.flops: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize()
        seconds = time.perf_counter() - self._begun
        counted = state.global_step > self.workload.warmup
        phases, losses = self.trainer.pop()
        phases["everything else"] = seconds - sum(phases.values())
        self.ours.add(seconds, phases, losses, counted)
        batch = self.trainer.last_batch
        if counted:
            self.tokens.append(float(count_tokens(batch)))
            self.flops.append(self.trainer.floating_point_ops(batch))
        if self.baseline is not None:
            self.theirs.add(*self.baseline(batch), counted)
        self._begun = time.perf_counter()


def make_baseline(workload: Workload, dtype: str) -> PlainTransformers:
    """N1 with the weights, the queue and the settings of the workload."""
    args = workload.arguments(Path("nothing is written"), "float32")
    model = workload.model()
    queue = workload.queue(model).to(args.device)
    torch.nn.Module.to(model, args.device)
    autocast = None if dtype == "float32" else DTYPES[dtype]
    return PlainTransformers(model, args, ContrastArguments(), queue, autocast)


def run_ours(workload: Workload, dtype: str = "float32", baseline: Step | None = None) -> _Turns:
    """Train by the real trainer; the baseline takes turns with it."""
    model = workload.model()
    turns = _Turns(workload, baseline)
    with tempfile.TemporaryDirectory() as folder:
        turns.trainer = _TimedTrainer(
            model,
            workload.arguments(Path(folder), dtype),
            contrast=ContrastArguments(queue_size=workload.queue_size),
            train_dataset=workload.dataset(Path(folder)),
            callbacks=[turns],
            initial_queue=workload.queue(model),
        )
        turns.trainer.train()
    return turns


def run_baseline_alone(workload: Workload, dtype: str) -> dict[str, Any]:
    """N1 without the trainer, for its memory."""
    baseline, run, size = make_baseline(workload, dtype), Run(), workload.batch_size
    with tempfile.TemporaryDirectory() as folder:
        dataset, collate = workload.dataset(Path(folder)), PretrainingCollator()
        for step in range(workload.warmup + workload.steps):
            batch = collate(dataset.__getitems__(range(step * size, (step + 1) * size)))
            run.add(*baseline.timed_step(batch), step >= workload.warmup)
    return {"baseline": run.summary(), "losses": {"baseline": run.losses}}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run both in turn, or one alone; see `summarise` for what goes into the result file."""
    sizes = {name: getattr(options, name) for name in SIZES}
    workload = Workload(options.geometry, flags=tuple(options.flags), **sizes)
    if options.only == "baseline":
        alone = run_baseline_alone(workload, options.baseline_dtype)
        return {**memory_peaks(), **alone}
    if options.only == "ours":
        turns, memory = run_ours(workload, options.dtype), memory_peaks()
        # After the memory: measuring the peak takes some too.
        return {**memory, **summarise(turns, measured_peak(options.dtype))}
    # Brings the heap to the size that it has after the first steps of a run, for both sides. Until its
    # holes fit the blocks of a step it grows, and growing by the gradient of the table takes a second.
    torch.zeros(HEAP_GROWTH // 4)
    given, peak = (workload, options.baseline_dtype), measured_peak(options.dtype)
    if options.baseline_defaults:
        baseline: Step = partial(Elsewhere(make_baseline, *given).call, "timed_step")
    else:
        baseline = make_baseline(*given).timed_step
    turns = run_ours(workload, options.dtype, baseline)
    result = summarise(turns, max(peak, measured_peak(options.dtype)))
    return {**memory_peaks(), **result}


def summarise(turns: _Turns, peak: float) -> dict[str, Any]:
    """Ratios, shares of the peak and losses, as a result file has them."""
    tokens, flops, ours = Samples(turns.tokens).median, Samples(turns.flops).median, turns.ours
    update = [sum(step.get(name, 0.0) for name in UPDATE) for step in ours.phases]
    rest = [total - part for total, part in zip(ours.samples.seconds, update, strict=True)]
    result: dict[str, Any] = {
        "ours": ours.summary(),
        "useful_flops": flops,
        "tokens": tokens,
        "tokens_per_second": tokens / ours.samples.median,
        "matmul_peak": peak,
        "mfu": flops / ours.samples.median / peak,
        "mfu_without_update": flops / Samples(rest).median / peak,
        "update_s": Samples(update).median,
        "losses": {"ours": ours.losses},
    }
    if turns.baseline is not None:
        result["baseline"] = turns.theirs.summary()
        result["losses"]["baseline"] = turns.theirs.losses
        result["largest_loss_difference"] = largest_difference(ours.losses, turns.theirs.losses)
        result["ratio"] = turns.theirs.samples.median / ours.samples.median
    return result


def largest_difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """Largest difference of any loss in any step, relative to losses above 1 nat."""
    steps = zip(ours, theirs, strict=True)
    return max(abs(a[name] - b[name]) / max(abs(b[name]), 1.0) for a, b in steps for name in b)


def print_result(console: Console, result: Mapping[str, Any]) -> None:
    """Print phases, losses side by side, and the ratio."""
    losses = result["losses"]
    sides = {side: result[side] for side in losses}
    phases = Table("phase", *(f"{side}, s" for side in sides))
    for name in dict.fromkeys(name for side in sides.values() for name in side["phases_s"]):
        cells = [side["phases_s"].get(name) for side in sides.values()]
        phases.add_row(name, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    phases.add_section()
    phases.add_row("step (median)", *(f"{side['median_s']:.3f}" for side in sides.values()))
    samples = (" ".join(f"{value:.2f}" for value in side["samples_s"]) for side in sides.values())
    phases.add_row("samples", *samples)
    table = Table("step", *(f"{name} {side}" for name in OBJECTIVES for side in sides))
    for number, step in enumerate(zip(*losses.values(), strict=True), 1):
        table.add_row(str(number), *(f"{side[name]:.6f}" for name in OBJECTIVES for side in step))
    console.print(phases, table)
    if "ratio" in result:
        console.print(f"ratio {result['ratio']:.2f}x", style="bold")
    if "mfu" in result:
        console.print(
            f"{result['tokens']:.0f} tokens a step, {result['tokens_per_second']:.0f} tokens/s; "
            f"{result['useful_flops'] / 1e9:.0f} useful GFLOP, peak {result['matmul_peak'] / 1e12:.3f} "
            f"TFLOP/s, MFU {result['mfu']:.1%} (without clip, AdamW and EMA "
            f"{result['mfu_without_update']:.1%}); clip + AdamW + EMA {result['update_s']:.3f} s"
        )
    console.print(f"{' and '.join(sides)}: peak memory {result['peak_memory_gib']:.2f} GiB")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program; `--flag name=value` sets any training argument of ours."""
    parser, defaults = make_parser(__doc__), Workload()
    parser.add_argument("--geometry", choices=GEOMETRIES, default=defaults.geometry)
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="products of ours")
    parser.add_argument("--baseline_dtype", choices=DTYPES, default="float32", help="products of N1")
    defaults_help = "N1 with torch's and the allocator's defaults"
    parser.add_argument("--baseline_defaults", action="store_true", help=defaults_help)
    parser.add_argument("--only", choices=("ours", "baseline"), help="run one alone, for its peak memory")
    allocator_help = "leave the allocator as it is, for peak memory"
    parser.add_argument("--default_allocator", action="store_true", help=allocator_help)
    parser.add_argument("--flag", action="append", default=[], metavar="NAME=VALUE", dest="flags")
    return parser.parse_args(argv)


def main() -> None:
    """Run what the flags ask for, print it and write it."""
    options = parse_arguments()
    # Keeping memory trades some for speed: not where the peak is asked for.
    as_it_is = partial(torch.set_float32_matmul_precision, "medium")
    configure = as_it_is if options.default_allocator else configure_process
    run_benchmark(options, measure, print_result, configure=configure)


if __name__ == "__main__":
    main()

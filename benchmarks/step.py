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
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from benchmarks.baselines import PlainTransformers
from benchmarks.measure import Samples, make_console, peak_memory, write_result
from benchmarks.workload import synthetic_corpus
from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.data.batches import JointDataset, PretrainingCollator, StreamSettings
from modeling_infoxlm.momentum import MomentumEncoder
from modeling_infoxlm.runs.process import configure_process
from modeling_infoxlm.training.arguments import ContrastArguments, PretrainingArguments
from modeling_infoxlm.training.throughput import count_tokens, matmul_peak, useful_flops
from modeling_infoxlm.training.trainer import InfoXLMTrainer

# Layers, width, heads, feed-forward width.
GEOMETRIES = {
    "tiny": (2, 32, 2, 64),
    "demo": (4, 256, 4, 1024),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}
HEAP_GROWTH = 2**30  # bytes: the gradient of XLM-R base's table, and some more
OBJECTIVES = ("mlm", "tlm", "xlco")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Workload:
    """What is run: model, batch and number of steps."""

    geometry: str = "base"
    num_layers: int | None = None
    vocab_size: int = 250_002
    queue_size: int = 131_072
    batch_size: int = 4
    max_length: int = 256
    warmup: int = 1
    steps: int = 3
    num_pairs: int = 2000
    num_languages: int = 1
    flags: tuple[str, ...] = ()
    seed: int = 0

    def config(self) -> InfoXLMConfig:
        """Configuration of the model, without dropout (the released README's setting)."""
        layers, hidden, heads, intermediate = GEOMETRIES[self.geometry]
        layers = self.num_layers or layers
        return InfoXLMConfig(
            vocab_size=self.vocab_size,
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            max_position_embeddings=self.max_length + 2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=1,
            xlco_layer=round(2 * layers / 3),
            # Vectors of random weights are nearly the same for all sentences: at the paper's 0.25 their
            # scores of 900 would differ by less than bf16 rounds, and the loss would say nothing.
            xlco_temperature=4.0,
        )

    def model(self) -> InfoXLMForPreTraining:
        """Model with the weights that both sides start from."""
        torch.manual_seed(self.seed)
        return InfoXLMForPreTraining(self.config())

    def queue(self, model: InfoXLMForPreTraining) -> Tensor:
        """Full queue that both start from, (Q, D): keys of random sentences, again and again with noise.

        Keys of the model itself: random ones are so far from every query that the loss would be 0.
        """
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(4, self.vocab_size - 1, (16 * 32,), generator=generator)
        keys = MomentumEncoder(model).encode({"input_ids": ids, "lengths": [32] * 16})
        tiled = keys.repeat(self.queue_size // 16 + 1, 1)[: self.queue_size]
        return tiled + 0.1 * torch.randn(tiled.shape, generator=generator)

    def dataset(self, folder: Path) -> JointDataset:
        """Training examples of a synthetic corpus written into `folder`."""
        corpus = synthetic_corpus(
            folder,
            vocab_size=self.vocab_size,
            max_length=self.max_length,
            num_pairs=self.num_pairs,
            num_languages=self.num_languages,
        )
        return JointDataset(corpus, StreamSettings(), num_items=self.batch_size * (self.warmup + self.steps))

    def arguments(self, folder: Path, dtype: str) -> PretrainingArguments:
        """Training arguments, those of the paper where they matter; `flags` go over them."""
        values: dict[str, Any] = dict(
            output_dir=str(folder),
            max_steps=self.warmup + self.steps,
            per_device_train_batch_size=self.batch_size,
            lr_scheduler_type="constant",
            warmup_steps=0,
            # Without warm-up the paper's would drive the loss of the contrast to 0 in two steps.
            learning_rate=1e-5,
            bf16=dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            logging_steps=10**9,
            disable_tqdm=True,
        )
        given = dict(flag.split("=", 1) for flag in self.flags)
        return PretrainingArguments(**values | {name: _parse(text) for name, text in given.items()})


def _parse(text: str) -> Any:
    """A number, true or false, or text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass
class Run:
    """What was measured of one side.

    Attributes:
        samples: Seconds of each counted step.
        phases: Seconds of each phase of each counted step.
        losses: Mean losses in nats of every step, warm-up included.
    """

    samples: Samples = field(default_factory=Samples)
    phases: list[dict[str, float]] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)

    def add(self, seconds: float, phases: dict[str, float], losses: dict[str, float], counted: bool) -> None:
        """Keep a step."""
        self.losses.append(losses)
        if counted:
            self.samples.seconds.append(seconds)
            self.phases.append(phases)

    def phase_medians(self) -> dict[str, float]:
        """Median seconds of each phase."""
        return {name: Samples([step[name] for step in self.phases]).median for name in self.phases[0]}


class _TimedTrainer(InfoXLMTrainer):
    """The trainer as it is; only notes what a step saw and how long its parts took."""

    last_batch: dict[str, Any]

    def __init__(self, *args: Any, initial_queue: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial_queue: Tensor | None = initial_queue
        self.seconds: dict[str, float] = {}
        self.losses: dict[str, list[Any]] = {}
        self._plain_model().register_forward_hook(lambda module, args, losses: self._note(losses))

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
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
        optimizer = wrapped.optimizer
        optimizer.register_step_pre_hook(lambda *_: self._begin("optimizer"))
        optimizer.register_step_post_hook(lambda *_: self._end("optimizer"))
        return prepared

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
        _synchronize()
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
    """After each step of the trainer the baseline takes its turn with the same batch."""

    def __init__(self, workload: Workload, baseline: "Baseline | None") -> None:
        self.workload, self.baseline = workload, baseline
        self.ours, self.theirs = Run(), Run()
        self.trainer: Any = None
        self.tokens: list[int] = []
        self.flops: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _synchronize()
        seconds = time.perf_counter() - self._begun
        counted = state.global_step > self.workload.warmup
        phases, losses = self.trainer.pop()
        phases["everything else"] = seconds - sum(phases.values())
        self.ours.add(seconds, phases, losses, counted)
        batch = self.trainer.last_batch
        if counted:
            self.tokens.append(count_tokens(batch))
            config = self.workload.config()
            self.flops.append(useful_flops(config, batch, queue_size=self.workload.queue_size))
        if self.baseline is not None:
            self.theirs.add(*self.baseline.step(batch), counted)
        self._begun = time.perf_counter()


class Baseline:
    """N1 in this process."""

    def __init__(self, workload: Workload, folder: Path, dtype: str) -> None:
        args = workload.arguments(folder, "float32")
        model = workload.model()
        queue = workload.queue(model).to(args.device)
        nn.Module.to(model, args.device)
        self.plain = PlainTransformers(model, args, ContrastArguments(), queue, DTYPES[dtype])

    def step(self, batch: Mapping[str, Any]) -> tuple[float, dict[str, float], dict[str, float]]:
        """Seconds, seconds of each phase, and losses of one step; padding the batch is not timed."""
        padded = self.plain.pad(batch)
        _synchronize()
        begun = time.perf_counter()
        losses = self.plain.step(padded)
        return time.perf_counter() - begun, dict(self.plain.seconds), losses


class BaselineWithDefaults:
    """N1 in a process of its own, where torch and the allocator are as they come."""

    def __init__(self, workload: Workload, folder: Path, dtype: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve_baseline, args=(theirs, workload, folder, dtype), daemon=True
        )
        self._process.start()
        self._pipe.recv()  # it is ready

    def step(self, batch: Mapping[str, Any]) -> Any:
        """As `Baseline.step`; this process waits meanwhile."""
        self._pipe.send(batch)
        return self._pipe.recv()


def _serve_baseline(pipe: Any, workload: Workload, folder: Path, dtype: str) -> None:
    baseline = Baseline(workload, folder, dtype)
    pipe.send("ready")
    while True:
        pipe.send(baseline.step(pipe.recv()))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_ours(
    workload: Workload, folder: Path, dtype: str, baseline: Baseline | BaselineWithDefaults | None
) -> _Turns:
    """Train by the real trainer; the baseline takes turns with it."""
    model = workload.model()
    turns = _Turns(workload, baseline)  # type: ignore[arg-type]
    trainer = _TimedTrainer(
        model,
        workload.arguments(folder, dtype),
        contrast=ContrastArguments(queue_size=workload.queue_size),
        train_dataset=workload.dataset(folder),
        callbacks=[turns],
        initial_queue=workload.queue(model),
    )
    turns.trainer = trainer
    trainer.train()
    return turns


def run_baseline_alone(workload: Workload, folder: Path, dtype: str) -> Run:
    """N1 without the trainer, for its memory."""
    dataset, collate = workload.dataset(folder), PretrainingCollator()
    baseline, run = Baseline(workload, folder, dtype), Run()
    for step in range(workload.warmup + workload.steps):
        first = step * workload.batch_size
        batch = collate(dataset.__getitems__(range(first, first + workload.batch_size)))
        run.add(*baseline.step(batch), step >= workload.warmup)
    return run


def measure(workload: Workload, dtype: str, baseline_dtype: str, *, with_defaults: bool) -> dict[str, Any]:
    """Run both in turn.

    Returns:
        What goes into the result file: see `summarise`.
    """
    _grow_heap()
    peaks = [_measured_peak(dtype)]
    with tempfile.TemporaryDirectory() as folder:
        make = BaselineWithDefaults if with_defaults else Baseline
        turns = run_ours(workload, Path(folder), dtype, make(workload, Path(folder), baseline_dtype))
    peaks.append(_measured_peak(dtype))
    return summarise(turns, max(peaks))


def _grow_heap() -> None:
    """Bring the heap to the size that it has after the first steps of a run, for both sides.

    Until its holes fit the blocks of a step it grows, and a step that grows it by the gradient of the table
    takes a second longer for page faults.
    """
    torch.zeros(HEAP_GROWTH // 4)


def _measured_peak(dtype: str) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return matmul_peak(device, DTYPES[dtype] or torch.float32, seconds=2.0)


def summarise(turns: _Turns, peak: float) -> dict[str, Any]:
    """Ratios, shares of the peak and losses, as a result file has them."""
    tokens, flops = Samples([*map(float, turns.tokens)]).median, Samples(turns.flops).median
    ours = turns.ours.samples.median
    update = [
        sum(step.get(name, 0.0) for name in ("clip", "optimizer", "momentum")) for step in turns.ours.phases
    ]
    without_update = Samples(
        [total - part for total, part in zip(turns.ours.samples.seconds, update, strict=True)]
    )
    result: dict[str, Any] = {
        "ours": {**turns.ours.samples.summary(), "phases_s": turns.ours.phase_medians()},
        "useful_flops": flops,
        "tokens": tokens,
        "tokens_per_second": tokens / ours,
        "matmul_peak": peak,
        "mfu": flops / ours / peak,
        "mfu_without_update": flops / without_update.median / peak,
        "update_s": Samples(update).median,
        "losses": {"ours": turns.ours.losses},
    }
    if turns.baseline is not None:
        theirs = turns.theirs.samples
        result["baseline"] = {**theirs.summary(), "phases_s": turns.theirs.phase_medians()}
        result["losses"]["baseline"] = turns.theirs.losses
        result["largest_loss_difference"] = largest_difference(turns.ours.losses, turns.theirs.losses)
        result["ratio"] = theirs.median / ours
    return result


def largest_difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """Largest difference of any loss in any step, relative to losses above 1 nat."""
    return max(
        abs(a[name] - b[name]) / max(abs(b[name]), 1.0)
        for a, b in zip(ours, theirs, strict=True)
        for name in b
    )


def print_result(console: Console, title: str, result: Mapping[str, Any]) -> None:
    """Print phases, losses side by side, and the ratio."""
    sides = [side for side in ("ours", "baseline") if side in result]
    phases = Table("phase", *(f"{side}, s" for side in sides), title=title, title_justify="left")
    names = [name for side in sides for name in result[side]["phases_s"]]
    for name in dict.fromkeys(names):
        cells = [result[side]["phases_s"].get(name) for side in sides]
        phases.add_row(name, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    phases.add_section()
    phases.add_row("step (median)", *(f"{result[side]['median_s']:.3f}" for side in sides))
    phases.add_row("samples", *(_listed(result[side]["samples_s"]) for side in sides))
    console.print(phases)
    _print_losses(console, result["losses"])
    if "ratio" in result:
        console.print(f"ratio {result['ratio']:.2f}x", style="bold")
    console.print(
        f"{result['tokens']:.0f} tokens a step, {result['tokens_per_second']:.0f} tokens/s; "
        f"{result['useful_flops'] / 1e9:.0f} useful GFLOP, peak {result['matmul_peak'] / 1e12:.3f} TFLOP/s, "
        f"MFU {result['mfu']:.1%} (without clip, AdamW and EMA {result['mfu_without_update']:.1%}); "
        f"clip + AdamW + EMA {result['update_s']:.3f} s; peak memory {peak_memory():.2f} GiB"
    )


def _listed(seconds: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in seconds)


def _print_losses(console: Console, losses: Mapping[str, list[dict[str, float]]]) -> None:
    table = Table("step", *(f"{name} {side}" for name in OBJECTIVES for side in losses))
    for step in range(len(losses["ours"])):
        cells = [f"{losses[side][step][name]:.6f}" for name in OBJECTIVES for side in losses]
        table.add_row(str(step + 1), *cells)
    console.print(table)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program; `--flag name=value` sets any training argument of ours."""
    defaults = Workload()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--geometry", choices=GEOMETRIES, default=defaults.geometry)
    for name in ("vocab_size", "queue_size", "batch_size", "max_length", "warmup", "steps"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="products of ours")
    parser.add_argument("--baseline_dtype", choices=DTYPES, default="float32", help="products of N1")
    parser.add_argument(
        "--baseline_defaults", action="store_true", help="N1 with torch's and the allocator's defaults"
    )
    parser.add_argument("--only", choices=("ours", "baseline"), help="run one alone, for its peak memory")
    parser.add_argument(
        "--default_allocator",
        action="store_true",
        help="leave the allocator as it is, for peak memory: keeping memory trades some for speed",
    )
    parser.add_argument("--flag", action="append", default=[], metavar="NAME=VALUE", dest="flags")
    parser.add_argument("--output", type=Path, help="result file, JSON")
    return parser.parse_args(argv)


def workload_of(options: argparse.Namespace) -> Workload:
    """The workload that the flags describe."""
    names = ("geometry", "vocab_size", "queue_size", "batch_size", "max_length", "warmup", "steps")
    return Workload(**{name: getattr(options, name) for name in names}, flags=tuple(options.flags))


def main() -> None:
    """Run what the flags ask for, print it and write it."""
    options, console = parse_arguments(), make_console()
    workload = workload_of(options)
    if options.default_allocator:
        torch.set_float32_matmul_precision("medium")
    else:
        configure_process()
    transformers_logging.set_verbosity_error()
    if options.only == "baseline":
        with tempfile.TemporaryDirectory() as folder:
            run = run_baseline_alone(workload, Path(folder), options.baseline_dtype)
        result: dict[str, Any] = {"baseline": run.samples.summary(), "losses": {"baseline": run.losses}}
        result["peak_memory_gib"] = peak_memory()
        console.print(f"N1 alone: {run.samples.median:.2f} s, peak memory {peak_memory():.2f} GiB")
    elif options.only == "ours":
        with tempfile.TemporaryDirectory() as folder:
            turns = run_ours(workload, Path(folder), options.dtype, None)
        memory = peak_memory()  # before the peak is measured, which takes memory too
        result = summarise(turns, _measured_peak(options.dtype)) | {"peak_memory_gib": memory}
        print_result(console, f"ours alone, {options.dtype}", result)
    else:
        result = measure(
            workload, options.dtype, options.baseline_dtype, with_defaults=options.baseline_defaults
        )
        title = f"ours {options.dtype}, N1 {options.baseline_dtype}"
        print_result(console, title + (" with torch's defaults" if options.baseline_defaults else ""), result)
    write_result(options.output, {"peak_memory_gib": peak_memory(), **result}, console)


if __name__ == "__main__":
    main()

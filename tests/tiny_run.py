"""A tiny joint pre-training run, as a program.

The tests start it in processes of its own, kill it and compare what it leaves.

    python tests/tiny_run.py OUTPUT_DIR --max_steps 40 --kill_after 20 ...

Every argument after OUTPUT_DIR is a field of PretrainingArguments or ContrastArguments, apart from
--kill_after N (SIGKILL to itself when step N is over and saved), --objectives, --dropout, and --register FILE
with an objective from outside the package.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tiny_tokenizers import VOCAB
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.data.batches import JointDataset
from modeling_infoxlm.data.ragged import SpecialTokens
from modeling_infoxlm.data.shards import PairStore, TokenStore, TokenStoreWriter
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.process import leave_process_group
from modeling_infoxlm.training.arguments import ContrastArguments, PretrainingArguments, with_objective_flags
from modeling_infoxlm.training.trainer import InfoXLMTrainer

SPECIAL = SpecialTokens(
    bos=0, pad=1, eos=2, unk=3, mask=VOCAB - 1, vocab_size=VOCAB, all_ids=(0, 1, 2, 3, VOCAB - 1)
)


def tiny_corpus(folder: Path, *, num_pairs: int = 60) -> SimpleNamespace:
    """Two languages that are each other's mirror: token t of one is 59 - t of the other."""
    rng = np.random.default_rng(7)
    sentences = [rng.integers(4, 31, rng.integers(2, 12)) for _ in range(num_pairs)]
    sides = {"source": sentences, "target": [VOCAB - 2 - ids for ids in sentences]}
    mono = [np.concatenate([[0], ids, [2]]) for ids in sentences]
    for name, sequences in {**sides, "mono": mono}.items():
        with TokenStoreWriter(folder / name) as writer:
            for ids in sequences:
                writer.append(ids)
    store = {name: TokenStore([folder / name]) for name in ("source", "target", "mono")}
    pair = PairStore(store["source"], store["target"], "en", "xx")
    return SimpleNamespace(
        mono={"en": store["mono"]},
        bitext={"en-xx": pair},
        heldout={"en-xx": pair},
        special=SPECIAL,
        max_length=64,
    )


def tiny_model(**overrides: object) -> InfoXLMForPreTraining:
    """A model of three layers, contrast at the second; the same weights every time."""
    set_seed(3)
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    defaults = {
        "vocab_size": VOCAB,
        "xlco_layer": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return InfoXLMForPreTraining(InfoXLMConfig(**{**shape, **defaults, **overrides}))


def sharp_model() -> InfoXLMForPreTraining:
    """A tiny model in eval mode whose predictions differ from place to place."""
    model = tiny_model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    return model


class KillAfter(TrainerCallback):
    """Ends the process as a power cut would: no handler runs."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):  # noqa: ANN001, ANN003, ANN201
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(argv: list[str], *, processes: int) -> list[int]:
    """Run with so many ranks, as a launcher would start them, and return their exit codes.

    They are forked by a server that has imported everything once: four ranks would else import torch four
    times.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_run"])
    port = free_port()
    ranks = [context.Process(target=_rank, args=(argv, i, processes, port)) for i in range(processes)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
        rank.kill()  # a rank that hangs must not outlive the test
    return [rank.exitcode for rank in ranks]


def _rank(argv: list[str], rank: int, processes: int, port: int) -> None:
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    main(argv)
    os._exit(0)


def main(argv: list[str]) -> None:
    folder, argv = Path(argv[0]), argv[1:]
    own = {"--kill_after": None, "--objectives": "mlm,tlm,xlco", "--dropout": "0", "--register": None}
    for flag in own:
        if flag in argv:
            at = argv.index(flag)
            own[flag] = argv[at + 1]
            del argv[at : at + 2]
    defaults = (
        "--use_cpu true --learning_rate 1e-2 --warmup_steps 0 "
        "--logging_steps 3 --save_steps 20 --disable_tqdm true"
    )
    given = ["--output_dir", str(folder), "--momentum", "0.9", "--queue_size", "24", *defaults.split(), *argv]
    if own["--register"]:
        runpy.run_path(own["--register"])
    training = with_objective_flags(PretrainingArguments, "weight", 1.0, "Weight of the loss")
    args, contrast = parse_args_with_config([training, ContrastArguments], given)
    torch.set_num_threads(1)
    settings = StreamSettings(objectives=tuple(own["--objectives"].split(",")), xlco_examples=2, seed=5)
    # Two ranks write the same bytes at the same time; each has its own folder.
    corpus = tiny_corpus(folder / f"corpus-{os.environ.get('RANK', '0')}")
    items = (
        args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    )
    dropout = float(own["--dropout"])
    trainer = InfoXLMTrainer(
        tiny_model(
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **contrast.config_overrides()
        ),
        args,
        contrast=contrast,
        train_dataset=JointDataset(corpus, settings, items),
        callbacks=[KillAfter(int(own["--kill_after"]))] if own["--kill_after"] else [],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    trainer.save_state()
    leave_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
    if "RANK" in os.environ:
        # A thread of gloo now and then aborts the process while it is torn down, with all work done and the
        # group left in order ("terminate called without an active exception"): end without tearing down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

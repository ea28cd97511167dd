"""Fine-tune a speech encoder (wav2vec 2.0, HuBERT, WavLM) end to end on 1 - CCC, in the order of DeepMI.

    python -m examples.finetune_encoder models/wavlm-base-plus -emo Act Dom Val \\
        --metric curriculum_metric/DeepMI_50clusters@_Val.json --corpus /data/MSP-PODCAST-Publish-1.8

The encoder, attentive statistics over time and a small head predict the attributes from the waveform. Its first layers,
which are convolutions, stay as they are. A training step computes the CCC over the whole batch, however few recordings
fit into memory at a time (--micro-batch), and on several GPUs over the batch of all of them:

    torchrun --nproc-per-node 2 -m examples.finetune_encoder ...

The epoch with the best validation CCC is written to Models/FinetunedEncoder_deepmi@_Act-Dom-Val.pt.tar, which
`python -m tools.predict --model` reads. A killed run continues after its last saved epoch.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from deepmi import cli, curriculum
from deepmi.seeds import SEED


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this example."""
    parser = cli.new_parser(__doc__)
    help = "folder of the encoder as Hugging Face's transformers saves it, or its name on the hub"
    parser.add_argument("encoder", metavar="FOLDER|NAME", help=help)
    help = "emotion attributes, predicted by one network; the loss is the mean over them"
    parser.add_argument("-emo", "--emo_attr", choices=cli.ATTRIBUTES, nargs="+", default=["Val"], help=help)
    help = "DeepMI file, or any JSON file of name -> number; for the orders that need it"
    parser.add_argument("--metric", type=Path, metavar="FILE", help=help)
    help = "which utterances come first, as in training_Curriculum.py; the levels are those of the first attribute"
    parser.add_argument("--order", choices=curriculum.ORDERS, default="deepmi", help=help)
    cli.add_schedule_arguments(parser, rates=False)
    parser.set_defaults(epochs_per_bin=1)  # fine-tuning takes few epochs
    parser.add_argument("-ep", "--epoch", type=cli.positive_int, default=15, metavar="N", help="number of epochs")
    help = "utterances per training step, over all processes"
    parser.add_argument("-batch", "--batch_size", type=cli.batch_int, default=32, metavar="N", help=help)
    help = "recordings that pass through the network together; fewer need less memory, and give the same loss"
    parser.add_argument("--micro-batch", type=cli.positive_int, default=8, metavar="N", help=help)
    parser.add_argument("--rate", type=cli.positive_number, default=1e-5, help="learning rate of the encoder")
    parser.add_argument("--head-rate", type=cli.positive_number, default=1e-3, help="learning rate of pooling and head")
    help = "seconds of a recording to train on, from its start; those of MSP-Podcast have at most 11"
    parser.add_argument("--seconds", type=cli.positive_number, default=12.0, metavar="S", help=help)
    group, corpus = parser.add_argument_group("corpus"), os.environ.get("DEEPMI_CORPUS")
    help = "corpus in MSP-Podcast's layout; by default $DEEPMI_CORPUS"
    group.add_argument("--corpus", type=Path, metavar="DIR", default=corpus, required=not corpus, help=help)
    group.add_argument("--labels", type=Path, metavar="FILE", help="consensus label file, if not the one in the corpus")
    group.add_argument("--audio", type=Path, metavar="DIR", help="recordings, if not the folder Audios of the corpus")
    help = "leave out utterances without a recording or a value of the metric, with a warning, instead of stopping"
    group.add_argument("--skip-missing", action="store_true", help=help)
    cli.add_model_dir_argument(parser)
    cli.add_device_argument(parser)
    help = "bf16 computes matrix products in bfloat16, on GPUs and processors that support it"
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=help)
    parser.add_argument(
        "--seed", type=cli.non_negative_int, default=SEED, metavar="N", help="seed of everything random"
    )
    help = "processes that read recordings; 0 reads in the training process"
    parser.add_argument("--workers", type=cli.non_negative_int, default=4, metavar="N", help=help)
    cli.add_resume_argument(parser)
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import utils
from deepmi import CurriculumSampler, ccc_loss, concordance_cc, emotion_levels, plots, ranks, run_log, runtime, storage
from deepmi.labels import attribute_labels, read_labels, select_split
from deepmi.metric import read_metric
from deepmi.process import STOP_SIGNALS, UserError, first_few, notify, num_ranks, rank, signals_blocked
from deepmi.seeds import derived_seed
from tools import finetuned
from tools.corpora import find_audio_folder
from tools.recordings import Recordings
from tools.sound import Clip, read_signal


class Split(NamedTuple):
    """The recordings of a split with a label of every attribute; N utterances, A attributes."""

    names: list[str]
    recordings: list[Path]
    labels: np.ndarray  # in label units, float64, (N, A)

    def digest(self) -> str:
        """Identifies names, labels and recordings; the recordings by size and time of change."""
        states = [path.stat() for path in self.recordings]
        return storage.digest(self.names, self.labels.tobytes(), [(s.st_size, s.st_mtime_ns) for s in states])


def load_split(args: argparse.Namespace, split: str, recordings: Recordings) -> Split:
    """A split, sorted by file name.

    Raises:
        UserError: labels or, without --skip-missing, recordings are missing, or all labels of an attribute are equal.
    """
    file = args.labels or utils.find_label_file(args.corpus)
    rows = select_split(read_labels(file), split, file)
    labels = pd.concat([attribute_labels(rows, attribute, file) for attribute in args.emo_attr], axis=1)
    complete = labels.dropna().sort_index()
    if len(complete) < len(rows):
        notify(f"warning: {len(rows) - len(complete)} rows of {split} lack a label; left out.")
    paths = dict(zip(complete.index, recordings.find_all(list(complete.index))))
    if missing := [name for name, path in paths.items() if path is None]:
        found = f"{recordings.folder}: no recording of {len(missing)} of {len(paths)} utterances of {split}"
        found += f" ({first_few(missing, 3)})"
        if not args.skip_missing or len(missing) == len(paths):
            raise UserError(f"{found}. Name their folder with --audio, or leave them out with --skip-missing.")
        notify(f"warning: {found}; left out.")
    complete = complete.drop(missing)
    if constant := [name for name, column in zip(args.emo_attr, complete.to_numpy().T) if len(set(column)) < 2]:
        raise UserError(
            f"{file}: all {len(complete)} utterances of {split} have the same label of {', '.join(constant)}, so there "
            "is no CCC. Correct the labels, or leave the attribute out of --emo_attr."
        )
    return Split(list(complete.index), [paths[name] for name in complete.index], complete.to_numpy())


class Signals(Dataset):
    """The first seconds of recordings, or the reason why one cannot be read."""

    def __init__(self, recordings: Sequence[Path], seconds: float):
        self.recordings, self.seconds = recordings, seconds

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, position: int) -> Tensor | str:
        path = self.recordings[position]
        try:
            return torch.from_numpy(read_signal(Clip(path, 0, self.seconds)))  # (samples,)
        except UserError as error:  # returned, because a worker process would add its traceback
            return f"{path}: {error}"


def read_batches(split: Split, batches: Sequence[Sequence[int]], args: argparse.Namespace) -> Iterator[list[Tensor]]:
    """The signals at each of these positions."""
    signals = Signals(split.recordings, args.seconds)
    with signals_blocked(*STOP_SIGNALS):  # for the workers: this process stops them
        loaded = iter(DataLoader(signals, batch_sampler=batches, collate_fn=list, num_workers=args.workers))
    for batch in loaded:
        if faults := [signal for signal in batch if isinstance(signal, str)]:
            raise UserError(f"{faults[0]}. Leave it out of the labels, or correct it.")
        yield batch


def backward(
    network: finetuned.FinetunedEncoder, signals: list[Tensor], targets: Tensor, args: argparse.Namespace, *place: int
) -> Tensor:
    """Add the gradient of the CCC loss of a whole batch, in two passes over its micro-batches.

    The first pass only predicts. From all predictions follow the loss and its gradient by each prediction, with which
    the second pass goes back through the network, one micro-batch at a time.

    Args:
        network: the network to train.
        signals: the share of this rank.
        targets: z-normalised labels of the whole batch, over all ranks, (B, A).
        args: micro_batch, seed, precision.
        place: epoch and number of the batch.
    Returns:
        Mean of 1 - CCC over the attributes, a scalar.
    Source: Gao, Zhang, Han & Callan, Scaling Deep Contrastive Learning Batch Size (GradCache), RepL4NLP 2021.
    """
    parts = [signals[start : start + args.micro_batch] for start in range(0, len(signals), args.micro_batch)]

    def predict(number: int) -> Tensor:
        # The same units are dropped in both passes.
        runtime.seed_everything(derived_seed(args.seed, "dropout", *place, rank(), number))
        with runtime.autocast(targets.device, args.precision):
            return network([signal.to(targets.device) for signal in parts[number]]).float()

    with torch.no_grad():
        own = torch.cat([targets[:0], *map(predict, range(len(parts)))])
        predictions = ranks.whole_of_shares(own, len(targets))  # (B, A)
    predictions.requires_grad_()
    loss = torch.stack([ccc_loss(*columns) for columns in zip(predictions.T, targets.T)]).mean()
    (gradient,) = torch.autograd.grad(loss, predictions)
    of_parts = gradient[ranks.own_share(len(targets))].split(args.micro_batch)
    for number in range(len(parts)):
        predict(number).backward(of_parts[number])
    return loss.detach()


def train_epoch(
    network: finetuned.FinetunedEncoder,
    adam: torch.optim.Optimizer,
    train: Split,
    targets: Tensor,
    sampler: CurriculumSampler,
    args: argparse.Namespace,
) -> float:
    """One pass over the utterances of the sampler's epoch; returns the mean loss, weighted by the size of a batch."""
    batches = [batch for batch in torch.tensor(list(sampler)).split(args.batch_size) if len(batch) > 1]
    shares = [batch[ranks.own_share(len(batch))].tolist() for batch in batches]
    weights = [weight for group in adam.param_groups for weight in group["params"]]
    losses = torch.zeros(len(batches), 1, device=targets.device)
    network.train()
    bar = tqdm(read_batches(train, shares, args), total=len(batches), unit="batch", leave=False, disable=None)
    for number, signals in enumerate(bar):
        adam.zero_grad()
        losses[number] = backward(network, signals, targets[batches[number]], args, sampler.epoch, number)
        for weight in weights:
            own = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad = ranks.sum_over_ranks(own)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
    losses = losses.cpu()  # the only wait for the device in this epoch
    run_log.refuse_divergence(losses, batches, train.names, f"epoch {sampler.epoch}")
    return run_log.weighted_mean(losses[:, 0], batches)


@torch.inference_mode()
def validate(network: finetuned.FinetunedEncoder, validation: Split, args: argparse.Namespace) -> dict[str, float]:
    """CCC of each attribute over the whole split."""
    network.eval()
    device, count = next(network.parameters()).device, len(validation.names)
    own = torch.arange(count)[ranks.own_share(count)].split(args.micro_batch)
    found = [torch.zeros(0, len(args.emo_attr), device=device)]
    for signals in read_batches(validation, [part.tolist() for part in own if len(part)], args):
        with runtime.autocast(device, args.precision):
            found.append(network([signal.to(device) for signal in signals]).float())
    z = ranks.whole_of_shares(torch.cat(found), count).cpu().numpy()  # (N, A)
    norms = network.label_norm.values()
    predictions = [z[:, number] * std + mean for number, (mean, std) in enumerate(norms)]
    return dict(zip(args.emo_attr, map(concordance_cc, validation.labels.T, predictions)))


def new_sampler(args: argparse.Namespace, train: Split) -> CurriculumSampler:
    """The curriculum. Each rank draws the whole batches, and takes its share of each."""
    if args.metric is None and args.order in curriculum.METRIC_ORDERS:
        raise UserError(f"--order {args.order}: needs a DeepMI file; name one with --metric FILE.")
    if args.order in curriculum.METRIC_ORDERS and not args.skip_missing:  # for a message that names the flags
        metric = read_metric(args.metric)
        curriculum.match_metric(metric, train.names, args.metric, [*train.names, *metric])
    levels = emotion_levels(train.labels[:, 0])
    options = {name: getattr(args, name) for name in ("pacing", "bins", "epochs_per_bin", "seed", "skip_missing")}
    return CurriculumSampler(args.metric, train.names, args.order, levels=levels, num_replicas=1, rank=0, **options)


@ranks.on_every_rank
def main(args: argparse.Namespace) -> None:
    """Fine-tune, and keep the best epoch."""
    device = runtime.choose_device(args.device)
    args.precision = runtime.choose_precision(device, args.precision)
    args.emo_attr = [attribute for attribute in cli.ATTRIBUTES if attribute in args.emo_attr]
    target = args.model_dir / f"FinetunedEncoder_{args.order}@_{'-'.join(args.emo_attr)}.pt.tar"
    utils.make_output_folders(args.model_dir)
    with ranks.first_rank_first():
        recordings = Recordings(args.audio or find_audio_folder(args.corpus) or args.corpus / "Audios")
        train, validation = (load_split(args, split, recordings) for split in ("Train", "Validation"))
        sampler = new_sampler(args, train)
        mean, std = train.labels.mean(axis=0), train.labels.std(axis=0)
        targets = torch.from_numpy((train.labels - mean) / std).float().to(device)
        runtime.seed_everything(derived_seed(args.seed, "head"))
        label_norm = dict(zip(args.emo_attr, zip(mean.tolist(), std.tolist())))
        network = finetuned.from_pretrained(args.encoder, label_norm)
        splits = {"Train": train, "Validation": validation}
        digests = {name: split.digest() for name, split in splits.items()}
        digests["encoder"] = storage.digest(*(value.numpy().tobytes() for value in network.state_dict().values()))
        digests["order"] = storage.digest(sampler.ranked.tobytes())
        details = {"corpus": str(args.corpus), "encoder": args.encoder, "ranks": num_ranks()}
        names = ("order", "pacing", "bins", "epochs_per_bin", "rate", "head_rate", "seconds", "micro_batch")
        run = run_log.TrainingRun(target, cli.chosen(args, *names), digests, details, args.resume)
        finished = run.is_finished()
        state = None if finished else run.start()
    run.refuse_unlike_ranks(finished)
    if finished:
        return
    print(f"{len(train.names)} Train, {len(validation.names)} Validation recordings of {args.corpus}, on {device}")
    network.encoder.feature_extractor._freeze_parameters()
    network.to(device)
    trained = [weight for weight in network.encoder.parameters() if weight.requires_grad]
    new = [*network.pool.parameters(), *network.head.parameters()]
    adam = torch.optim.AdamW([{"params": trained, "lr": args.rate}, {"params": new, "lr": args.head_rate}])
    if state is not None:
        with run.reading_state():
            network.load_state_dict(state["weights"])
            runtime.load_optimizer(adam, state["optimizer"])

    def write_outputs() -> None:
        facts = {name: str(value) for name, value in run.facts().items()}
        finetuned.save_finetuned(target, network, run.best["weights"], facts)
        plots.draw_curriculum_run(run.history, run.picture, target.name)

    for epoch in range(len(run.history), args.epoch):
        begin = time.monotonic()
        sampler.set_epoch(epoch)
        record = {"epoch": epoch, "utterances": len(sampler)}
        record["ccc_loss"] = train_epoch(network, adam, train, targets, sampler, args)
        found = validate(network, validation, args)
        record["validation_ccc_loss"] = 1 - sum(found.values()) / len(found)
        record |= {f"validation_ccc_{attribute}": value for attribute, value in found.items()}
        record["seconds"] = round(time.monotonic() - begin, 3)
        run.end_epoch(record, network.state_dict())  # the best epoch has the lowest validation_ccc_loss
        cccs = ", ".join(f"{attribute} {value:.3f}" for attribute, value in found.items())
        counts = f"{record['utterances']} utterances, CCC loss {record['ccc_loss']:.4f}"
        print(f"epoch {epoch:3d}: {counts}, validation CCC {cccs}, {record['seconds']:.1f} s")
        if run.save_is_due():
            state = {"weights": network.state_dict(), "optimizer": runtime.optimizer_state(adam)}
            run.save(state, write_outputs)
    run.finish(write_outputs)


if __name__ == "__main__":
    cli.run(main, ARGS)

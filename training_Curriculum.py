"""Stage 3: a regressor trained from high to low DeepMI.

    python training_Curriculum.py -ep 70 -batch 512 -emo Val --corpus /data/MSP-PODCAST-Publish-1.8

orders the Train split by curriculum_metric/DeepMI_50clusters@_Val.json. It trains on the first tenth, then the
first two tenths and so on, five epochs each, and on everything from epoch 45. The regressor with the best validation
CCC is written to Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar, with its log (.log.jsonl) and a picture (.png).
On several GPUs or CPUs:

    torchrun --nproc-per-node 2 training_Curriculum.py ...

Source: Lin, Sridhar & Busso (2024), and the original's settings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deepmi import cli, curriculum


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this stage."""
    parser = cli.new_parser(__doc__)
    cli.add_training_arguments(parser, epochs=70, several=True)
    cli.add_clusters_argument(parser, "number of clusters K of the DeepMI file to use, DeepMI_Kclusters@_EMO.json")
    cli.add_metric_dir_argument(parser)
    cli.add_metric_argument(parser)
    parser.add_argument(
        "--order",
        choices=curriculum.ORDERS,
        default="deepmi",
        help="which utterances come first: those of high DeepMI (deepmi); the same with every emotion level in every "
        "bin (deepmi-balanced), for metrics whose first bins hold few levels; or as controls random, low DeepMI first "
        "(reverse), all at once (none)",
    )
    cli.add_keep_argument(parser)
    cli.add_schedule_arguments(parser)
    cli.add_corpus_arguments(parser)
    cli.add_model_dir_argument(parser)
    seed_help = (
        "seed of the weights, batches, dropout and random order; the same seed gives the same bytes on the same CPU"
    )
    cli.add_compute_arguments(parser, seed_help, compiles=True)
    cli.add_resume_argument(parser)
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import time

import numpy as np
import torch
from tqdm import tqdm

import utils
from deepmi import plots, ranks, run_log, runtime, storage
from deepmi.batches import Rows, in_batches
from deepmi.ccc import ccc_loss, concordance_cc
from deepmi.metric import emotion_levels, read_metric, warn_if_flat
from deepmi.process import UserError, num_ranks
from deepmi.seeds import derived_seed
from model import DenseNet, save_regressor


class Learner:
    """The regressor and its optimizer."""

    def __init__(self, num_features: int, device: torch.device, compile: bool = False):
        self.model = DenseNet(num_features).to(device)
        self.adam = runtime.adam(self.model.parameters(), curriculum.LEARNING_RATE, device)
        self.network = runtime.compiled(ranks.over_ranks(self.model), compile)


def train_epoch(
    learner: Learner,
    rows: Rows,
    names: list[str],
    targets: torch.Tensor,
    subset: torch.Tensor,
    rate: float,
    epoch: int,
    args: argparse.Namespace,
) -> float:
    """One pass over the epoch's subset in random batches.

    Args:
        learner: the regressor to train.
        rows: features of the training set, (N, D).
        names: its file names, for messages.
        targets: its z-normalised labels, (N,).
        subset: positions that the epoch trains on.
        rate: learning rate.
        epoch: counted from 0.
        args: batch_size, seed, precision.
    Returns:
        Mean CCC loss over the batches, weighted by their size. The CCC of a single utterance has no gradient, so a
        last batch of one is left out; where there is no other batch, the loss is 1.
    Raises:
        UserError: a loss is not finite.
    """
    runtime.set_rate(learner.adam, rate)
    runtime.seed_everything(derived_seed(args.seed, "batches", epoch))
    permutation = torch.randperm(len(subset), device=rows.device)
    ranks.copy_from_first_rank(permutation)
    batches = [batch for batch in subset[permutation].split(args.batch_size) if len(batch) > 1]
    ranks.seed_own_dropout(args.seed, epoch)
    learner.model.train()
    losses = torch.zeros(len(batches), 1, device=rows.device)
    shares = [batch[ranks.own_share(len(batch))] for batch in batches]  # one rank: the batches themselves
    for number, (x, batch) in enumerate(zip(rows.batches(shares), batches)):  # x: features of the share, (B, D)
        with runtime.autocast(rows.device, args.precision):
            prediction = learner.network(x)
        loss = ccc_loss(ranks.whole_batch(prediction.float(), len(batch)), targets[batch])
        learner.adam.zero_grad()
        (loss * num_ranks()).backward()  # DDP averages the gradients of the shares where they should be added
        learner.adam.step()
        losses[number] = loss.detach()
    losses = losses.cpu()  # the only wait for the device in this epoch
    run_log.refuse_divergence(losses, batches, names, f"epoch {epoch}")
    return run_log.weighted_mean(losses[:, 0], batches)


def validation_loss(learner: Learner, rows: Rows, targets: np.ndarray, precision: str) -> float:
    """1 - CCC over the whole validation split at once; targets are its z-normalised labels, (N,)."""
    (predictions,) = in_batches(learner.model, learner.model, rows, precision)
    return 1 - concordance_cc(targets, predictions.cpu().numpy())


def load_order(
    args: argparse.Namespace, corpus: utils.LabeledCorpus, train: utils.LabeledSet
) -> tuple[np.ndarray, str | None, str | None]:
    """Positions of the training set, first those to train on first; name and digest of the metric, None without one."""
    levels = emotion_levels(train.labels)
    if args.order not in curriculum.METRIC_ORDERS and args.keep == 1:
        if args.metric:
            raise UserError(f"--metric: has no effect with --order {args.order}; leave one of them out.")
        print(f"order {args.order}, no DeepMI used")
        return curriculum.training_order(args.order, train.names, None, args.seed, levels), None, None
    file: Path = args.metric or utils.metric_file(args.metric_dir, args.num_clusters, args.emo_attr)
    in_train = corpus.select("Train")["FileName"].tolist()
    values = curriculum.match_metric(read_metric(file), train.names, file, in_train, args.skip_missing)
    if np.isfinite(values).sum() < 2:
        raise UserError(f"{file}: covers fewer than two of the utterances to train on.")
    print(f"order {args.order} by {file}")
    warn_if_flat(values[~np.isnan(values)], file)
    if args.keep < 1:
        values = curriculum.keep_highest(values, levels, train.names, args.keep)
        kept = np.isfinite(values).sum()
        print(f"--keep {args.keep:g}: {kept} of {len(values)} utterances, the highest of each emotion level")
    order = curriculum.training_order(args.order, train.names, values, args.seed, levels)
    return order, file.name, storage.digest(values.tobytes())


def note_if_too_short(schedule: curriculum.Schedule, total: int, args: argparse.Namespace) -> None:
    """Print a note if training ends before all `total` utterances are in, or before it can learn from them."""
    last = schedule.size(args.order, args.epoch - 1, total)
    if last < total:
        print(f"note: -ep {args.epoch} ends within the curriculum, at {last} of {total} Train utterances.")
    steps = schedule.steps_before_spent(args.order, total, args.batch_size, args.epoch)
    spent = schedule.learning_rate(args.epoch - 1) < curriculum.SPENT_RATE
    if spent and steps < curriculum.FEW_STEPS:
        print(
            f"note: only {steps} training steps before the learning rate falls below {curriculum.SPENT_RATE:g}, too "
            "few for the utterances that come later. --rate-decay late keeps it until all are in."
        )


def train_attribute(args: argparse.Namespace) -> list[dict]:
    """Train for one attribute and keep the best regressor; its epoch and validation CCC, as `TrainingRun.summary`."""
    device = runtime.choose_device(args.device)
    args.precision = runtime.choose_precision(device, args.precision)
    if args.compile:
        runtime.check_compile(device)
    schedule = cli.schedule(args)
    target = utils.regressor_checkpoint(args.model_dir, args.order, args.emo_attr)
    utils.make_output_folders(args.model_dir, args.cache_dir)
    with ranks.first_rank_first():
        corpus = utils.open_corpus(args)
        train, validation = corpus.load("Train"), corpus.load_validation()
        order, metric, metric_key = load_order(args, corpus, train)
        digests = {"Train": train.key, "Validation": validation.key, "metric": metric_key}
        counts = {"Train": len(order), "Validation": len(validation.names)}
        details = {"corpus": str(args.corpus), "counts": counts, "device": str(device), "metric": metric}
        details["ranks"] = num_ranks()
        chosen = cli.chosen(args, "order", "keep", "pacing", "rate_decay", "bins", "epochs_per_bin")
        run = run_log.TrainingRun(target, chosen, digests, details, args.resume)
        finished = run.is_finished()
        state = None if finished else run.start()
    run.refuse_unlike_ranks(finished)
    if finished:
        return run.summary()

    runtime.seed_everything(derived_seed(args.seed, "regressor"))
    learner = Learner(corpus.num_features, device, args.compile)
    if state is not None:
        with run.reading_state():
            learner.model.load_state_dict(state["weights"])
            runtime.load_optimizer(learner.adam, state["optimizer"])
    rows, validation_rows = Rows(train.rows, device, args.precision), Rows(validation.rows, device, args.precision)
    targets, order = torch.from_numpy(train.targets).to(device), torch.from_numpy(order).to(device)
    sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{sizes} utterances of {corpus.num_features} features, on {device}")
    note_if_too_short(schedule, len(order), args)

    def write_outputs() -> None:
        save_regressor(target, run.best["weights"], run.facts() | corpus.facts() | {"metric": metric})
        plots.draw_curriculum_run(run.history, run.picture, target.name)

    first = len(run.history)
    for epoch in tqdm(range(first, args.epoch), initial=first, total=args.epoch, unit="epoch", disable=None):
        begin, rate = time.monotonic(), schedule.learning_rate(epoch)
        subset = order[: schedule.size(args.order, epoch, len(order))]
        record = {"epoch": epoch, "lr": rate, "utterances": len(subset)}
        record["ccc_loss"] = train_epoch(learner, rows, train.names, targets, subset, rate, epoch, args)
        record["validation_ccc_loss"] = validation_loss(learner, validation_rows, validation.targets, args.precision)
        record["seconds"] = round(time.monotonic() - begin, 3)

        run.end_epoch(record, learner.model.state_dict())  # the best epoch has the lowest validation_ccc_loss
        tqdm.write(
            f"epoch {record['epoch']:3d}: {record['utterances']} utterances, CCC loss {record['ccc_loss']:.4f}, "
            f"validation CCC loss {record['validation_ccc_loss']:.4f}, {record['seconds']:.2f} s"
        )
        if run.save_is_due():
            state = {"weights": learner.model.state_dict(), "optimizer": runtime.optimizer_state(learner.adam)}
            run.save(state, write_outputs)
    run.finish(write_outputs)
    return run.summary()


@ranks.on_every_rank
def main(args: argparse.Namespace) -> None:
    """Train for each attribute."""
    cli.for_each_attribute(train_attribute, args)


if __name__ == "__main__":
    cli.run(main, ARGS)

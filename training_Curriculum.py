"""Stage 3: a regressor trained from high to low DeepMI.

    python training_Curriculum.py -ep 70 -batch 512 -emo Val --corpus /data/MSP-PODCAST-Publish-1.8

orders the Train split by curriculum_metric/DeepMI_50clusters@_Val.json, trains on the first tenth, the first two tenths
and so on, five epochs each, and on everything from epoch 45. The regressor with the best validation CCC goes to
Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar, with its log (.log.jsonl) and a picture of both losses (.png) beside it.
On several GPUs, or in several processes on CPUs:

    torchrun --nproc-per-node 2 training_Curriculum.py ...
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from deepmi import cli, curriculum, ranks, run_log, runtime, storage
from deepmi.process import UserError, num_ranks
from deepmi.seeds import derived_seed


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this stage."""
    parser = cli.new_parser(__doc__)
    cli.add_training_arguments(parser, epochs=70)
    cli.add_clusters_argument(parser, "number of clusters K of the DeepMI file to use, DeepMI_Kclusters@_EMO.json")
    cli.add_metric_dir_argument(parser)
    parser.add_argument(
        "--metric", type=Path, metavar="FILE", help="DeepMI file to use, whatever -nc and --metric-dir say"
    )
    parser.add_argument(
        "--order",
        choices=curriculum.ORDERS,
        default="deepmi",
        help="which utterances first: high DeepMI; high DeepMI with every emotion level in every bin (deepmi-balanced; "
        "for first bins of few cells, whose labels have hardly any spread); or as controls random, low DeepMI "
        "(reverse), all at once (none)",
    )
    cli.add_pacing_argument(parser)
    cli.add_corpus_arguments(parser)
    cli.add_model_dir_argument(parser)
    cli.add_compute_arguments(
        parser,
        "seed of the weights, the batches, dropout and the random order; same seed, same machine: same bytes on a CPU",
    )
    cli.add_resume_argument(parser)
    return parser


class Learner:
    """The regressor with its optimizer. Source: Lin, Sridhar & Busso (2024), and the original's settings."""

    def __init__(self, model, device, args: argparse.Namespace):
        self.model = model.to(device)
        self.device, self.precision, self.batch_size, self.seed = device, args.precision, args.batch_size, args.seed
        self.adam = runtime.adam(model.parameters(), curriculum.LEARNING_RATE, device)
        self.network = ranks.over_ranks(model)
        self.step = runtime.CapturedStep(self._step, device)

    def _step(self, x, targets):
        """Train on a batch; its CCC loss, which needs two utterances or more."""
        from deepmi.ccc import ccc_loss

        with runtime.autocast(self.device, self.precision):
            prediction = self.network(x)
        loss = ccc_loss(ranks.whole_batch(prediction.float(), len(targets)), targets)
        self.adam.zero_grad(set_to_none=True)
        (loss * num_ranks()).backward()  # over ranks gradients are averaged, each that of its own part
        self.adam.step()
        return loss.detach()

    def train_epoch(self, rows, targets, subset, names: list[str], epoch: int) -> float:
        """One pass over the epoch's subset in random batches.

        Args:
            rows: `batches.Rows` of N utterances.
            targets: their z-normed labels, tensor (N,) on the device.
            subset: positions that the epoch trains on, tensor on the device.
            names: file names of the N utterances.
            epoch: counted from 0.
        Returns:
            Mean CCC loss over the batches, weighted by their size. The CCC of a single utterance has no gradient, so a
            last batch of one is left out; where there is no other batch, the loss is 1.
        Raises:
            UserError: a loss is not finite.
        """
        import torch

        runtime.set_rate(self.adam, curriculum.learning_rate(epoch))
        runtime.seed_everything(derived_seed(self.seed, "batches", epoch))
        shuffled = ranks.as_on_first_rank(torch.randperm(len(subset), device=self.device))
        batches = [batch for batch in subset[shuffled].split(self.batch_size) if len(batch) > 1]
        if not batches:
            return 1.0
        ranks.seed_own_dropout(self.seed, epoch)
        self.model.train()
        losses = torch.zeros(len(batches), 1, device=self.device)
        own_rows = rows.batches([batch[ranks.own_share(len(batch))] for batch in batches])
        for number, x in enumerate(own_rows):
            losses[number] = self.step(x, targets[batches[number]])
        losses = losses.cpu()  # one wait for the device an epoch, none a batch
        run_log.refuse_divergence(losses, batches, names, f"epoch {epoch}")
        return run_log.weighted_mean(losses[:, 0], [len(batch) for batch in batches])

    def validation_loss(self, rows, targets) -> float:
        """1 - CCC over the whole validation set at once."""
        from deepmi.batches import in_batches
        from deepmi.ccc import concordance_cc

        predictions = in_batches(self.model, self.model, rows, self.precision)
        return ranks.from_first_rank(lambda: 1 - concordance_cc(targets, predictions[0].cpu().numpy()))


def load_order(args: argparse.Namespace, corpus, train) -> tuple:
    """The training order, and name and digest of the metric it comes from (None each where it needs none).

    Args:
        args: order, seed, skip_missing, and where the metric is.
        corpus: `utils.LabeledCorpus`.
        train: its Train split, a `utils.LabeledSet`.
    """
    import numpy as np

    import utils
    from deepmi.metric import emotion_levels, read_metric, warn_if_flat

    values, metric, key = None, None, None
    if args.order in curriculum.METRIC_ORDERS:
        file = args.metric or utils.metric_file(args.metric_dir, args.num_clusters, args.emo_attr)
        in_train = corpus.select("Train")["FileName"].tolist()
        values = curriculum.match_metric(read_metric(file), train.names, file, in_train, args.skip_missing)
        if np.isfinite(values).sum() < 2:
            raise UserError(f"{file}: covers fewer than two of the utterances to train on.")
        metric, key = Path(file).name, storage.digest(values.tobytes())
        print(f"order {args.order} by {file}")
        warn_if_flat(values[~np.isnan(values)], file)
    else:
        print(f"order {args.order}, no DeepMI used")
    levels = emotion_levels(train.labels)
    return curriculum.training_order(args.order, train.names, values, args.seed, levels), metric, key


def train_epochs(
    learner: Learner, rows, train, validation_rows, validation, order, args, first: int = 0
) -> Iterator[dict]:
    """Train on more and more of the training set.

    Args:
        learner: what is trained.
        rows: `batches.Rows` of the training set.
        train: its `utils.LabeledSet`.
        validation_rows: those of the validation set.
        validation: its `utils.LabeledSet`.
        order: positions in the training set, the first to be trained first, int64, shape (N,) or fewer.
        args: with epoch (how many), order and pacing.
        first: epoch to begin with, counted from 0.
    Yields:
        The record of each epoch, for the log.
    Raises:
        UserError: a loss is not finite.
    """
    import torch

    targets = torch.from_numpy(train.targets).to(learner.device)
    order = torch.from_numpy(order).to(learner.device)
    for epoch in range(first, args.epoch):
        begin = time.monotonic()
        record = {"epoch": epoch, "lr": curriculum.learning_rate(epoch)}
        record["utterances"] = curriculum.training_size(args.order, epoch, len(order), args.pacing)
        subset = order[: record["utterances"]]
        record["ccc_loss"] = learner.train_epoch(rows, targets, subset, train.names, epoch)
        record["validation_ccc_loss"] = learner.validation_loss(validation_rows, validation.targets)
        record["seconds"] = round(time.monotonic() - begin, 3)
        yield record


def main(args: argparse.Namespace) -> None:
    """Train, keeping the best regressor."""
    from tqdm import tqdm

    import utils
    from deepmi import plots
    from deepmi.batches import Rows
    from model import DenseNet, save_regressor

    device = runtime.choose_device(args.device)
    args.precision = runtime.choose_precision(device, args.precision)
    target = utils.regressor_checkpoint(args.model_dir, args.order, args.emo_attr)
    utils.make_output_folders(args.model_dir, args.cache_dir)
    with ranks.first_rank_first():
        corpus = utils.open_corpus(args)
        train, validation = corpus.load("Train"), corpus.load_validation()
        order, metric, metric_key = load_order(args, corpus, train)
        keys = {"Train": train.key, "Validation": validation.key, "metric": metric_key}
        counts = {"Train": len(order), "Validation": len(validation.names)}
        details = {"corpus": str(args.corpus), "counts": counts, "device": str(device), "metric": metric}
        details["ranks"] = num_ranks()
        run = run_log.TrainingRun(target, cli.chosen(args, "order", "pacing"), keys, details, args.resume)
        finished = run.is_finished()
        state = None if finished else run.start()
    run.refuse_unlike_ranks(finished)
    if finished:
        return

    runtime.seed_everything(derived_seed(args.seed, "regressor"))
    model = DenseNet(corpus.num_features)
    learner = Learner(model, device, args)
    if state is not None:
        with run.reading_state():
            model.load_state_dict(state["weights"])
            runtime.load_optimizer(learner.adam, state["optimizer"])
    rows, validation_rows = Rows(train.rows, device, args.precision), Rows(validation.rows, device, args.precision)
    sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{sizes} utterances of {corpus.num_features} features, on {device}")
    last = curriculum.training_size(args.order, args.epoch - 1, len(order), args.pacing)
    if last < len(order):
        print(f"note: -ep {args.epoch} ends within the curriculum, at {last} of {len(order)} Train utterances.")

    def write_outputs() -> None:
        save_regressor(target, run.best["weights"], run.facts() | corpus.facts() | {"metric": metric})
        plots.draw_curriculum_run(run.history, run.picture, target.name)

    def make_state() -> dict:
        return {"weights": model.state_dict(), "optimizer": runtime.optimizer_state(learner.adam)}

    first = len(run.history)
    epochs = train_epochs(learner, rows, train, validation_rows, validation, order, args, first)
    for record in tqdm(epochs, initial=first, total=args.epoch, unit="epoch", disable=None):
        run.end_epoch(record)
        run.keep_if_best(record["validation_ccc_loss"], record["epoch"], model.state_dict())
        tqdm.write(
            f"epoch {record['epoch']:3d}: {record['utterances']} utterances, CCC loss {record['ccc_loss']:.4f}, "
            f"validation CCC loss {record['validation_ccc_loss']:.4f}, {record['seconds']:.2f} s"
        )
        run.save_if_due(make_state, write_outputs)
    run.finish(write_outputs)


if __name__ == "__main__":
    cli.run(main, get_args_parser(), with_ranks=True)

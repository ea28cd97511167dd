"""Stage 1: semi-supervised DeepEmoCluster.

    python training_DeepEmoCluster.py -ep 200 -batch 512 -emo Val -nc 50 \\
        --corpus /data/MSP-PODCAST-Publish-1.8 --unlabeled /data/Unlabeled_SpeechDataSet

Each epoch has two phases. The first clusters the unlabeled set by k-means and trains on the pseudo-labels. The second
does the same on the Train split, jointly with the emotion regressor. The checkpoint with the best validation CCC is
written to Models/, with its log (.log.jsonl) and a picture of the run (.png). On several GPUs or CPUs:

    torchrun --nproc-per-node 2 training_DeepEmoCluster.py ...

Source: Lin, Sridhar & Busso, "DeepEmoCluster" (2021), and the original's settings. SGD has no momentum, and no
optimizer has weight decay.
"""

from __future__ import annotations

import argparse

from deepmi import cli


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this stage."""
    parser = cli.new_parser(__doc__)
    cli.add_training_arguments(parser, epochs=200, several=True)
    cli.add_clusters_argument(parser)
    cli.add_corpus_arguments(parser)
    cli.add_unlabeled_arguments(parser)
    cli.add_model_dir_argument(parser)
    seed_help = "seed of the weights, k-means, batches and dropout; the same seed gives the same bytes on a CPU"
    cli.add_compute_arguments(parser, seed_help, compiles=True)
    cli.add_resume_argument(parser)
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import time
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import utils
from deepmi import clustering, plots, ranks, run_log, runtime
from deepmi.batches import Rows, in_batches
from deepmi.ccc import ccc_loss, concordance_cc
from deepmi.process import num_ranks
from deepmi.seeds import derived_seed
from model import DenseResNet, save_ssl_checkpoint

LR_TRUNK = 1e-3  # SGD on the trunk (everything but the top layer), both phases
LR_TOP_LAYER = 1e-2  # SGD
LR_JOINT = 1e-4  # Adam on the trunk, labeled phase


class Learner:
    """The network and its optimizers.

    As in the original, two of them step the trunk in the labeled phase: SGD, as in the unlabeled one, and Adam.
    """

    def __init__(self, num_features: int, args: argparse.Namespace, device: torch.device):
        self.model = DenseResNet(num_features, args.num_clusters).to(device)
        trunk = [p for name, p in self.model.named_parameters() if not name.startswith("top_layer_class")]
        self.sgd = runtime.sgd(trunk, LR_TRUNK, device)
        self.adam = runtime.adam(trunk, LR_JOINT, device)
        self.top_sgd = runtime.sgd(self.model.top_layer_class.parameters(), LR_TOP_LAYER, device)
        self.network = runtime.compiled(ranks.over_ranks(self.model, in_parts=True), args.compile)


def train_phase(
    learner: Learner, rows: Rows, names: list[str], targets: torch.Tensor | None, epoch: int, args: argparse.Namespace
) -> tuple[torch.Tensor, dict]:
    """Cluster a set of N utterances and train on the pseudo-labels, jointly with the regressor if it is labeled.

    Args:
        learner: the network to train.
        rows: features, (N, D).
        names: file names, for messages.
        targets: z-normalised labels, (N,); None for the unlabeled set.
        epoch: counted from 0.
        args: the command line.
    Returns:
        Cluster of each utterance (N,), and a record for the log.
    """
    model, device, phase = learner.model, rows.device, int(targets is not None)
    title = f"epoch {epoch}, {'unlabeled' if targets is None else 'labeled'}"

    # Assign: k-means of the features as the network sees them now
    (points,) = in_batches(model, model.cluster_features, rows, args.precision, own=True)  # (N, 256)
    seed = derived_seed(args.seed, "k-means", epoch, phase)
    clusters = clustering.kmeans(points, args.num_clusters, seed, len(rows), device)
    pseudo_labels = clusters.assignment  # (N,)
    del points  # the only memory that grows with the set

    # Sample: N utterances, the same number from each cluster
    seed = derived_seed(args.seed, "sampler", epoch, phase)
    sampled = clustering.uniform_sample(pseudo_labels, args.num_clusters, seed)
    ranks.copy_from_first_rank(sampled)
    batches = sampled.split(args.batch_size)

    # A fresh top layer, because cluster numbers mean something else in every phase
    runtime.seed_everything(derived_seed(args.seed, "top layer", epoch, phase))
    model.renew_top_layer()
    ranks.copy_from_first_rank(model.top_layer_class.weight.detach())
    ranks.seed_own_dropout(args.seed, epoch, phase)

    model.train()
    optimizers = [learner.sgd, learner.top_sgd, *([learner.adam] if phase else [])]
    losses = torch.zeros(len(batches), 2, device=device)  # cross-entropy and CCC loss
    shares = [batch[ranks.own_share(len(batch))] for batch in batches]  # one rank: the batches themselves
    bar = tqdm(rows.batches(shares), title, len(batches), unit="batch", leave=False, disable=None)
    for number, (x, batch, share) in enumerate(zip(bar, batches, shares)):  # x: features of the share, (B, D)
        joint = targets is not None and len(batch) > 1  # the CCC of a single utterance has no gradient

        # Forward
        with runtime.autocast(device, args.precision):
            logits, attribute = learner.network(x, clusters_only=not joint)  # (B, K), (B,)
        loss = cluster_loss = cross_entropy(logits.float(), pseudo_labels[share], reduction="sum") / len(batch)
        if joint:
            attribute_loss = ccc_loss(ranks.whole_batch(attribute.float(), len(batch)), targets[batch])
            loss = cluster_loss + attribute_loss
            losses[number, 1] = attribute_loss.detach()
        losses[number, 0] = cluster_loss.detach()

        # Backward and step. Each rank has its share of the loss, and DDP averages the gradients where they should be
        # added: hence the factor.
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss * num_ranks()).backward()
        for optimizer in optimizers:
            optimizer.step()

    losses[:, 0] = ranks.sum_over_ranks(losses[:, 0])
    losses = losses.cpu()  # the only wait for the device in this phase
    run_log.refuse_divergence(losses, batches, names, title)
    return pseudo_labels, record_of(clusters, losses, batches, targets is not None)


def record_of(
    clusters: clustering.Clustering, losses: torch.Tensor, batches: Sequence[torch.Tensor], labeled: bool
) -> dict:
    """What the log says of a phase: its clusters, and mean losses from those of each batch (cross-entropy, CCC)."""
    record = {"cluster_loss": run_log.weighted_mean(losses[:, 0], batches), "non_empty": clusters.non_empty}
    record |= {"sizes": sorted(clusters.sizes.tolist(), reverse=True), "kmeans_objective": clusters.objective}
    if labeled:
        record["ccc_loss"] = run_log.weighted_mean(losses[:, 1], batches, smallest=2)  # a single utterance has no CCC
        record["joint_loss"] = record["cluster_loss"] + record["ccc_loss"]
    return record


def validation_loss(learner: Learner, rows: Rows, targets, args: argparse.Namespace) -> float:
    """1 - CCC over the whole validation split at once; targets are its z-normalised labels, (N,)."""
    (predictions,) = in_batches(learner.model, learner.model.predict_attribute, rows, args.precision)
    return 1 - concordance_cc(targets, predictions.cpu().numpy())


def describe(record: dict) -> str:
    """One console line per epoch."""
    labeled = record["labeled"]
    nmi = "  -  " if record["nmi"] is None else f"{record['nmi']:.3f}"
    return (
        f"epoch {record['epoch']:3d}: validation CCC loss {record['validation_ccc_loss']:.4f}, joint loss "
        f"{labeled['joint_loss']:.4f} (clusters {labeled['cluster_loss']:.4f}, CCC {labeled['ccc_loss']:.4f}), "
        f"NMI {nmi}, {labeled['non_empty']} clusters of {min(filter(None, labeled['sizes']))}..{labeled['sizes'][0]}, "
        f"{record['seconds']:.1f} s"
    )


def train_attribute(args: argparse.Namespace) -> list[dict]:
    """Train for one attribute and keep the best checkpoint; its epoch and validation CCC, as `TrainingRun.summary`."""
    device = runtime.choose_device(args.device)
    args.precision = runtime.choose_precision(device, args.precision)
    if args.compile:
        runtime.check_compile(device)
    checkpoint = utils.ssl_checkpoint(args.model_dir, args.epoch, args.batch_size, args.num_clusters, args.emo_attr)
    utils.make_output_folders(args.model_dir, args.cache_dir)
    with ranks.first_rank_first():
        sets, corpus_facts = utils.load_training_sets(args)
        counts = {name: len(data.names) for name, data in sets.items()}
        digests = {name: data.key for name, data in sets.items()}
        details = {"corpus": str(args.corpus), "counts": counts, "device": str(device), "ranks": num_ranks()}
        run = run_log.TrainingRun(checkpoint, cli.chosen(args, "num_clusters"), digests, details, args.resume)
        finished = run.is_finished()
        state = None if finished else run.start()
    run.refuse_unlike_ranks(finished)
    if finished:
        return run.summary()

    train, validation = sets["Train"], sets["Validation"]
    rows = {name: Rows(data.rows, device, args.precision) for name, data in sets.items()}
    targets = torch.from_numpy(train.targets).to(device)
    runtime.seed_everything(derived_seed(args.seed, "DeepEmoCluster"))
    learner, assignment = Learner(rows["Train"].num_features, args, device), None
    if state is not None:
        with run.reading_state():
            learner.model.load_state_dict(state["weights"])
            runtime.load_optimizer(learner.adam, state["adam"])  # SGD without momentum has no state
            (assignment,) = state["assignment"].long().split(counts["Train"])
    sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{sizes} utterances of {rows['Train'].num_features} features, on {device}")

    def write_outputs() -> None:
        save_ssl_checkpoint(checkpoint, run.best["weights"], run.facts() | corpus_facts)
        plots.draw_ssl_run(run.history, run.picture, checkpoint.name)

    first = len(run.history)
    for epoch in tqdm(range(first, args.epoch), initial=first, total=args.epoch, unit="epoch", disable=None):
        begin, record, previous = time.monotonic(), {"epoch": epoch}, assignment
        if "unlabeled" in sets:
            _, record["unlabeled"] = train_phase(learner, rows["unlabeled"], sets["unlabeled"].names, None, epoch, args)
        assignment, record["labeled"] = train_phase(learner, rows["Train"], train.names, targets, epoch, args)
        record["nmi"] = None if previous is None else clustering.nmi(assignment, previous)
        record["validation_ccc_loss"] = validation_loss(learner, rows["Validation"], validation.targets, args)
        record["seconds"] = round(time.monotonic() - begin, 3)

        run.end_epoch(record, learner.model.state_dict())  # the best epoch has the lowest validation_ccc_loss
        tqdm.write(describe(record))
        if run.save_is_due():
            state = {"weights": learner.model.state_dict(), "adam": runtime.optimizer_state(learner.adam)}
            run.save(state | {"assignment": assignment.cpu()}, write_outputs)
    run.finish(write_outputs)
    return run.summary()


@ranks.on_every_rank
def main(args: argparse.Namespace) -> None:
    """Train for each attribute."""
    cli.for_each_attribute(train_attribute, args)


if __name__ == "__main__":
    cli.run(main, ARGS)

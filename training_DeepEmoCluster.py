"""Stage 1: semi-supervised DeepEmoCluster.

    python training_DeepEmoCluster.py -ep 200 -batch 512 -emo Val -nc 50 \\
        --corpus /data/MSP-PODCAST-Publish-1.8 --unlabeled /data/Unlabeled_SpeechDataSet

Each epoch clusters the unlabeled set by k-means and trains on the pseudo-labels, then does the same on the Train split
jointly with the emotion regressor. The checkpoint with the best validation CCC goes to Models/, with its log
(.log.jsonl) and a picture of the run (.png) beside it. On several GPUs, or in several processes on CPUs:

    torchrun --nproc-per-node 2 training_DeepEmoCluster.py ...
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

from deepmi import cli, ranks, run_log, runtime
from deepmi.process import UserError, num_ranks
from deepmi.seeds import derived_seed

LR_TRUNK = 1e-3  # SGD on everything but the top layer, both stages
LR_TOP_LAYER = 1e-2  # SGD
LR_JOINT = 1e-4  # Adam on everything but the top layer, joint stage
UNLABELED, LABELED = 0, 1  # the two stages of an epoch


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this stage."""
    parser = cli.new_parser(__doc__)
    cli.add_training_arguments(parser, epochs=200)
    cli.add_clusters_argument(parser)
    cli.add_corpus_arguments(parser)
    cli.add_unlabeled_arguments(parser)
    cli.add_model_dir_argument(parser)
    cli.add_compute_arguments(
        parser,
        "seed of the weights, k-means, the batches and dropout; same seed, same machine: same bytes on a CPU",
    )
    cli.add_resume_argument(parser)
    return parser


@dataclass
class Part:
    """What one stage of an epoch trains on.

    Attributes:
        rows: `batches.Rows` of N utterances.
        names: their file names.
        targets: z-normed labels, tensor (N,) on the device; None where there are none.
    """

    rows: object
    names: list[str]
    targets: object = None


class Learner:
    """The network with its optimizers.

    Nothing has momentum or weight decay. Source: Lin, Sridhar & Busso (2021), and the original's settings.
    """

    def __init__(self, model, device, precision: str, batch_size: int):
        self.model = model.to(device)
        self.device, self.precision, self.batch_size = device, precision, batch_size
        lasting = [p for name, p in model.named_parameters() if not name.startswith("top_layer_class")]
        self.sgd = runtime.sgd(lasting, LR_TRUNK, device)
        self.adam = runtime.adam(lasting, LR_JOINT, device)
        self.top_sgd = runtime.sgd(model.top_layer_class.parameters(), LR_TOP_LAYER, device)
        self.network = ranks.over_ranks(model, in_parts=True)
        self.steps = [runtime.CapturedStep(step, device) for step in (self._cluster_step, self._joint_step)]

    def _cluster_step(self, x, labels, *more_optimizers):
        """Train on a batch's pseudo-labels; (cross-entropy, 0)."""
        with runtime.autocast(self.device, self.precision):
            logits, _ = self.network(x, clusters_only=True)
        cluster_loss = self._cluster_loss(logits, labels)
        return self._update(cluster_loss, cluster_loss.new_zeros(()), *more_optimizers)

    def _joint_step(self, x, labels, targets):
        """Train on a batch's pseudo-labels and labels; (cross-entropy, CCC loss).

        The CCC of a single utterance has no gradient, so such a batch trains on its pseudo-label only.
        """
        from deepmi.ccc import ccc_loss

        if len(labels) == 1:
            return self._cluster_step(x, labels, self.adam)

        with runtime.autocast(self.device, self.precision):
            logits, attribute = self.network(x)
        attribute = ranks.whole_batch(attribute.float(), len(labels))
        return self._update(self._cluster_loss(logits, labels), ccc_loss(attribute, targets), self.adam)

    def _cluster_loss(self, logits, labels):
        """This rank's part of the batch's mean cross-entropy."""
        from torch.nn.functional import cross_entropy

        own = labels[ranks.own_share(len(labels))]
        return cross_entropy(logits.float(), own, reduction="sum") / len(labels)

    def _update(self, cluster_loss, attribute_loss, *more_optimizers):
        """One step of every optimizer on the sum of both losses; both losses, this rank's part of the first."""
        import torch

        optimizers = [self.sgd, self.top_sgd, *more_optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        # Over ranks gradients are averaged, while the loss of the whole batch is the sum of their parts.
        ((cluster_loss + attribute_loss) * num_ranks()).backward()
        for optimizer in optimizers:
            optimizer.step()
        return torch.stack([cluster_loss.detach(), attribute_loss.detach()])

    def train_on(self, part: Part, pseudo_labels, draws, title: str) -> tuple[float, float]:
        """One pass over `draws`; jointly with the regressor where the part has targets.

        Args:
            part: N utterances.
            pseudo_labels: tensor (N,) on the device.
            draws: positions of the utterances to train on, in this order; tensor on the device.
            title: what the progress bar and an error call this.
        Returns:
            Mean cross-entropy, and mean CCC loss over batches of two or more (0 without targets); batches are weighted
            by their size.
        Raises:
            UserError: a loss is not finite.
        """
        import torch
        from tqdm import tqdm

        self.model.train()
        batches = draws.split(self.batch_size)
        losses = torch.zeros(len(batches), 2, device=self.device)
        rows = part.rows.batches([batch[ranks.own_share(len(batch))] for batch in batches])
        for number, x in enumerate(tqdm(rows, title, len(batches), unit="batch", leave=False, disable=None)):
            batch = batches[number]
            if part.targets is None:
                losses[number] = self.steps[UNLABELED](x, pseudo_labels[batch])
            else:
                losses[number] = self.steps[LABELED](x, pseudo_labels[batch], part.targets[batch])
        losses[:, 0] = ranks.sum_over_ranks(losses[:, 0])
        losses = losses.cpu()  # one wait for the device a stage, none a batch
        run_log.refuse_divergence(losses, batches, part.names, title)
        sizes = [len(batch) for batch in batches]
        return run_log.weighted_mean(losses[:, 0], sizes), run_log.weighted_mean(losses[:, 1], sizes, smallest=2)


def cluster(learner: Learner, part: Part, num_clusters: int, seed: int):
    """The k-means clusters of a part's utterances, as the network sees them now; a `Clustering`.

    Its 256 numbers an utterance are the only memory that grows with the part, and gone before training begins.
    """
    from deepmi import clustering
    from deepmi.batches import in_batches

    model = learner.model
    points = in_batches(model, model.cluster_features, part.rows, learner.precision)
    # The assignment lies where the points do: with several ranks on the CPU, from where it is sent.
    return ranks.from_first_rank(lambda: clustering.kmeans(points[0], num_clusters, seed, learner.device))


def run_stage(learner: Learner, part: Part, num_clusters: int, seed: int, place: tuple[int, int], title: str):
    """Cluster a part and train on its pseudo-labels.

    Args:
        seed: the run's.
        place: epoch and stage.
    Returns:
        (`Clustering`, record for the log).
    """
    from deepmi import clustering

    clusters = cluster(learner, part, num_clusters, derived_seed(seed, "k-means", *place))
    pseudo_labels = clusters.assignment.to(learner.device)
    draws = clustering.uniform_sample(pseudo_labels, num_clusters, derived_seed(seed, "sampler", *place))
    draws = ranks.as_on_first_rank(draws)
    runtime.seed_everything(derived_seed(seed, "top layer", *place))
    learner.model.renew_top_layer()
    ranks.as_on_first_rank(learner.model.top_layer_class.weight.detach())
    ranks.seed_own_dropout(seed, *place)
    cluster_loss, ccc_loss = learner.train_on(part, pseudo_labels, draws, title)
    record = {
        "cluster_loss": cluster_loss,
        "non_empty": clusters.non_empty,
        "sizes": sorted(clusters.sizes.tolist(), reverse=True),
        "kmeans_objective": clusters.objective,
    }
    if part.targets is not None:
        record |= {"ccc_loss": ccc_loss, "joint_loss": cluster_loss + ccc_loss}
    return clusters, record


def validation_loss(learner: Learner, part: Part) -> float:
    """1 - CCC over the whole validation set at once."""
    from deepmi.batches import in_batches
    from deepmi.ccc import concordance_cc

    model = learner.model
    predictions = in_batches(model, model.predict_attribute, part.rows, learner.precision)
    return ranks.from_first_rank(lambda: 1 - concordance_cc(part.targets.cpu().numpy(), predictions[0].cpu().numpy()))


def load_parts(args: argparse.Namespace, device) -> tuple[dict[str, Part], dict[str, str], dict]:
    """The Train, Validation and (unless its size is 0) unlabeled parts, digests of them, facts for the checkpoint."""
    import torch

    import utils
    from deepmi import features
    from deepmi.batches import Rows

    if args.unlabeled_size and args.unlabeled is None:
        raise UserError(utils.NO_UNLABELED)
    corpus = utils.open_corpus(args)
    parts, keys, facts = {}, {}, corpus.facts()
    for split, data in (("Train", corpus.load("Train")), ("Validation", corpus.load_validation())):
        rows = Rows(data.rows, device, args.precision)
        parts[split] = Part(rows, data.names, torch.from_numpy(data.targets).to(device))
        keys[split] = data.key
    if args.unlabeled_size:
        paths = utils.draw_unlabeled(args.unlabeled, args.unlabeled_size, args.unlabeled_seed)
        facts["feature_set"] = features.common_feature_set(
            {args.norm_dir: corpus.feature_set, paths.folder: features.read_feature_set(paths.folder)}
        )
        packed = features.pack_features(
            paths.folder, paths.names, *corpus.feature_norm, args.cache_dir, args.workers, "unlabeled"
        )
        corpus.warn_of_tested(packed.names, paths.folder)
        parts["unlabeled"] = Part(Rows(packed.rows, device, args.precision), packed.names)
        keys["unlabeled"] = packed.key
    for name in ("Train", "unlabeled"):
        if name in parts and args.num_clusters > len(parts[name].names):
            raise UserError(
                f"-nc {args.num_clusters}: more clusters than the {len(parts[name].names)} utterances of {name}; ask "
                "for fewer."
            )
    return parts, keys, facts


def train_epoch(learner: Learner, parts: dict[str, Part], args: argparse.Namespace, epoch: int, previous) -> tuple:
    """Both stages and the validation.

    Args:
        previous: assignment of Train in the epoch before, or None.
    Returns:
        (assignment of Train, record for the log).
    """
    from deepmi import clustering

    begin = time.monotonic()
    record = {"epoch": epoch}
    if "unlabeled" in parts:
        title = f"epoch {epoch}, unlabeled"
        _, record["unlabeled"] = run_stage(
            learner, parts["unlabeled"], args.num_clusters, args.seed, (epoch, UNLABELED), title
        )
    clusters, record["labeled"] = run_stage(
        learner, parts["Train"], args.num_clusters, args.seed, (epoch, LABELED), f"epoch {epoch}, labeled"
    )
    record["nmi"] = None if previous is None else clustering.nmi(clusters.assignment, previous)
    record["validation_ccc_loss"] = validation_loss(learner, parts["Validation"])
    record["seconds"] = round(time.monotonic() - begin, 3)
    return clusters.assignment, record


def describe(record: dict) -> str:
    """One console line an epoch."""
    labeled = record["labeled"]
    nmi = "  -  " if record["nmi"] is None else f"{record['nmi']:.3f}"
    return (
        f"epoch {record['epoch']:3d}: validation CCC loss {record['validation_ccc_loss']:.4f}, joint loss "
        f"{labeled['joint_loss']:.4f} (clusters {labeled['cluster_loss']:.4f}, CCC {labeled['ccc_loss']:.4f}), "
        f"NMI {nmi}, {labeled['non_empty']} clusters of {min(filter(None, labeled['sizes']))}..{labeled['sizes'][0]}, "
        f"{record['seconds']:.1f} s"
    )


def main(args: argparse.Namespace) -> None:
    """Train, keeping the best checkpoint."""
    from tqdm import tqdm

    import utils
    from deepmi import plots
    from model import DenseResNet, save_ssl_checkpoint

    device = runtime.choose_device(args.device)
    args.precision = runtime.choose_precision(device, args.precision)
    checkpoint = utils.ssl_checkpoint(args.model_dir, args.epoch, args.batch_size, args.num_clusters, args.emo_attr)
    utils.make_output_folders(args.model_dir, args.cache_dir)
    with ranks.first_rank_first():
        parts, keys, facts = load_parts(args, device)
        counts = {name: len(part.names) for name, part in parts.items()}
        details = {"corpus": str(args.corpus), "counts": counts, "device": str(device), "ranks": num_ranks()}
        run = run_log.TrainingRun(checkpoint, cli.chosen(args, "num_clusters"), keys, details, args.resume)
        finished = run.is_finished()
        state = None if finished else run.start()
    run.refuse_unlike_ranks(finished)
    if finished:
        return

    runtime.seed_everything(derived_seed(args.seed, "DeepEmoCluster"))
    num_features = parts["Train"].rows.num_features
    model = DenseResNet(num_features, args.num_clusters)
    learner = Learner(model, device, args.precision, args.batch_size)
    first, assignment = len(run.history), None
    if state is not None:
        with run.reading_state():
            model.load_state_dict(state["weights"])
            runtime.load_optimizer(learner.adam, state["adam"])
            (assignment,) = state["assignment"].long().split(counts["Train"])
    sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{sizes} utterances of {num_features} features, on {device}")

    def write_outputs() -> None:
        save_ssl_checkpoint(checkpoint, run.best["weights"], run.facts() | facts)
        plots.draw_ssl_run(run.history, run.picture, checkpoint.name)

    def make_state() -> dict:
        return {
            "weights": learner.model.state_dict(),
            "adam": runtime.optimizer_state(learner.adam),
            "assignment": assignment.cpu(),
        }

    for epoch in tqdm(range(first, args.epoch), initial=first, total=args.epoch, unit="epoch", disable=None):
        assignment, record = train_epoch(learner, parts, args, epoch, assignment)
        run.end_epoch(record)
        run.keep_if_best(record["validation_ccc_loss"], epoch, learner.model.state_dict())
        tqdm.write(describe(record))
        run.save_if_due(make_state, write_outputs)
    run.finish(write_outputs)


if __name__ == "__main__":
    cli.run(main, get_args_parser(), with_ranks=True)

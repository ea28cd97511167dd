"""Stage 3: a regressor trained from high to low DeepMI.

    python training_Curriculum.py -ep 70 -batch 512 -emo Val --corpus /data/MSP-PODCAST-Publish-1.8

orders the Train split by curriculum_metric/DeepMI_50clusters@_Val.json, trains on the first tenth, the first two tenths
and so on, five epochs each, and on everything from epoch 45. The regressor with the best validation CCC goes to
Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar, with its log (.log.jsonl) and a picture of both losses (.png) beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import arguments
import curriculum
import runtime


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this stage."""
    parser = arguments.new_parser(__doc__)
    arguments.add_training_arguments(parser, epochs=70)
    arguments.add_clusters_argument(parser)
    arguments.add_metric_dir_argument(parser)
    parser.add_argument(
        "--metric", type=Path, metavar="FILE", help="DeepMI file to use, whatever -nc and --metric-dir say"
    )
    parser.add_argument(
        "--order",
        choices=curriculum.ORDERS,
        default="deepmi",
        help="which utterances first: high DeepMI; or as controls random, low DeepMI (reverse), all at once (none)",
    )
    arguments.add_corpus_arguments(parser)
    arguments.add_model_dir_argument(parser)
    arguments.add_compute_arguments(
        parser,
        "seed of the weights, the batches, dropout and the random order; same seed, same machine: same bytes on a CPU",
    )
    arguments.add_resume_argument(parser)
    return parser


def train_epoch(model, optimizer, train, rows, subset, args: argparse.Namespace, device, epoch: int) -> float:
    """One pass over the epoch's subset in random batches.

    Args:
        train: the `utils.LabeledSet`, N utterances.
        rows: its features as a tensor, (N, D).
        subset: positions that the epoch trains on.
    Returns:
        Mean CCC loss over the batches.
    Raises:
        UserError: a loss is not finite.
    """
    import torch

    from metrics import ccc_loss

    runtime.seed_everything(runtime.derived_seed(args.seed, epoch, 1))
    model.train()
    targets = torch.from_numpy(train.targets)
    losses = []
    batches = subset[torch.randperm(len(subset))].split(args.batch_size)
    for batch in batches:
        with runtime.autocast(device, args.precision):
            prediction = model(rows.index_select(0, batch).to(device))
        loss = ccc_loss(prediction, targets[batch].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    losses = torch.stack(losses).cpu()
    runtime.refuse_divergence(losses[:, None], batches, train.names, f"epoch {epoch}")
    return losses.mean().item()


def load_order(args: argparse.Namespace, names: list[str]) -> tuple:
    """The training order, and name and digest of the metric it comes from (None each where it needs none)."""
    import deepmi
    import utils

    values, metric, key = None, None, None
    if args.order in ("deepmi", "reverse"):
        file = args.metric or utils.metric_file(args.metric_dir, args.num_clusters, args.emo_attr)
        values = curriculum.match_metric(deepmi.read_metric(file), names, file)
        metric, key = Path(file).name, runtime.digest(values.tobytes())
        print(f"order {args.order} by {file}")
    else:
        print(f"order {args.order}, no DeepMI used")
    return curriculum.training_order(args.order, names, values, args.seed), metric, key


def main(args: argparse.Namespace) -> None:
    """Train, keeping the best regressor."""
    import torch
    from tqdm import tqdm

    import plots
    import utils
    from metrics import concordance_cc
    from model import DenseNet, as_tensor, in_batches, save_regressor

    device = runtime.choose_device(args.device)
    target = utils.regressor_checkpoint(args.model_dir, args.order, args.emo_attr)
    utils.make_output_folders(args.model_dir, args.cache_dir)
    corpus = arguments.open_corpus(args)
    train, held_out = corpus.load("Train"), corpus.load("Validation")
    order, metric, metric_key = load_order(args, train.names)
    keys = {"Train": train.key, "Validation": held_out.key, "metric": metric_key}
    counts = {"Train": len(train.names), "Validation": len(held_out.names)}
    details = {"corpus": str(args.corpus), "counts": counts, "device": str(device), "metric": metric}
    run = runtime.TrainingRun(target, arguments.chosen(args, "order"), keys, details, args.resume)
    if run.is_finished():
        return
    state = run.start()

    runtime.seed_everything(runtime.derived_seed(args.seed, 0))
    model = DenseNet(corpus.num_features).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=curriculum.LEARNING_RATE, fused=device.type in ("cpu", "cuda"))
    if state is not None:
        model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
    rows, held_out_rows = as_tensor(train.rows), as_tensor(held_out.rows)
    order = torch.from_numpy(order)
    sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{sizes} utterances of {corpus.num_features} features, on {device}")

    def write_outputs() -> None:
        save_regressor(target, run.best["weights"], run.facts() | {"metric": metric})
        plots.draw_curriculum_run(run.history, run.picture, target.name)

    def make_state() -> dict:
        return {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}

    first = len(run.history)
    for epoch in tqdm(range(first, args.epoch), initial=first, total=args.epoch, unit="epoch", disable=None):
        begin = time.monotonic()
        record = {"epoch": epoch, "lr": curriculum.learning_rate(epoch)}
        record["utterances"] = curriculum.training_size(args.order, epoch, len(train.names))
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        record["ccc_loss"] = train_epoch(
            model, optimizer, train, rows, order[: record["utterances"]], args, device, epoch
        )
        (prediction,) = in_batches(model, model, held_out_rows, device, args.precision)
        record["validation_ccc_loss"] = 1 - concordance_cc(held_out.targets, prediction.numpy())
        record["seconds"] = round(time.monotonic() - begin, 3)
        run.end_epoch(record)
        run.keep_if_best(record["validation_ccc_loss"], epoch, model.state_dict())
        tqdm.write(
            f"epoch {epoch:3d}: {record['utterances']} utterances, CCC loss {record['ccc_loss']:.4f}, validation CCC "
            f"loss {record['validation_ccc_loss']:.4f}, {record['seconds']:.2f} s"
        )
        run.save_if_due(make_state, write_outputs)
    run.finish(write_outputs)


if __name__ == "__main__":
    arguments.run(main, get_args_parser())

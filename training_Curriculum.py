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
    arguments.add_order_argument(
        parser, "order of the curriculum: high DeepMI first; the controls are random, reverse, and none"
    )
    arguments.add_corpus_arguments(parser)
    arguments.add_model_dir_argument(parser)
    arguments.add_compute_arguments(
        parser,
        "seed of the weights, the batches, dropout and the random order; same seed, same machine: same bytes on a CPU",
    )
    arguments.add_resume_argument(parser)
    return parser


def train_epoch(model, optimizer, rows, targets, subset, args: argparse.Namespace, device, epoch: int) -> float:
    """One pass over the epoch's subset in random batches.

    Args:
        rows: float32, (N, D).
        targets: z-normed labels, (N,).
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
    losses = []
    for batch in subset[torch.randperm(len(subset))].split(args.batch_size):
        with runtime.autocast(device, args.precision):
            prediction = model(rows.index_select(0, batch).to(device))
        loss = ccc_loss(prediction, targets[batch].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    mean = torch.stack(losses).mean().item()
    if mean != mean:
        raise runtime.UserError(
            f"epoch {epoch}: the loss is not finite; look at the features, or try --precision fp32."
        )
    return mean


def load_order(args: argparse.Namespace, names: list[str]) -> tuple:
    """The training order and the digest of the metric it comes from (None where it needs no metric)."""
    import curriculum
    import deepmi
    import utils

    values, key = None, None
    if args.order in ("deepmi", "reverse"):
        file = args.metric or utils.metric_file(args.metric_dir, args.num_clusters, args.emo_attr)
        values = curriculum.match_metric(deepmi.read_metric(file), names, file)
        key = runtime.digest(values.tobytes())
        print(f"order {args.order} by {file}")
    else:
        print(f"order {args.order}, no DeepMI used")
    return curriculum.training_order(args.order, names, values, args.seed), key


def load_data(args: argparse.Namespace) -> tuple[dict, dict]:
    """Train and Validation as {split: (names, rows, z-normed labels)}, and digests of what they hold."""
    import torch

    import utils
    from model import as_tensor

    corpus = utils.find_corpus(args.corpus, args.labels, args.features)
    table = utils.read_labels(corpus.labels)
    mean, std = utils.read_label_norm(args.norm_dir, args.emo_attr)
    sets, keys = {}, {}
    for split in ("Train", "Validation"):
        data = utils.load_labeled(
            corpus,
            table,
            split,
            args.emo_attr,
            args.norm_dir,
            args.cache_dir,
            args.workers,
            args.skip_missing,
        )
        sets[split] = data.names, as_tensor(data.rows), torch.from_numpy((data.labels - mean) / std).float()
        keys[split] = data.key
    return sets, keys


def main(args: argparse.Namespace) -> None:
    """Train, keeping the best regressor."""
    import torch
    from tqdm import tqdm

    import curriculum
    import plots
    import utils
    from metrics import concordance_cc
    from model import DenseNet, in_batches, save_regressor

    device = runtime.choose_device(args.device)
    target = utils.regressor_checkpoint(args.model_dir, args.order, args.emo_attr)
    utils.make_output_folders(args.model_dir, args.cache_dir)
    sets, keys = load_data(args)
    names, rows, targets = sets["Train"]
    order, keys["metric"] = load_order(args, names)
    order = torch.from_numpy(order)
    chosen = {name: getattr(args, name) for name in ("epoch", "batch_size", "emo_attr", "order", "seed", "precision")}
    counts = {split: len(part[0]) for split, part in sets.items()}
    details = {"corpus": str(args.corpus), "counts": counts, "device": str(device)}
    run = runtime.TrainingRun(target, chosen, keys, details, args.resume)
    if run.is_finished():
        print(f"{target}: trained already with these arguments on these data; --no-resume trains it anew.")
        return
    state = run.start(device)

    runtime.seed_everything(runtime.derived_seed(args.seed, 0))
    model = DenseNet(rows.shape[1]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=curriculum.LEARNING_RATE, fused=device.type in ("cpu", "cuda"))
    first, best = 0, {"loss": float("inf"), "epoch": None, "weights": None}
    if state is not None:
        model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        first, best = state["epoch"] + 1, state["best"]
        print(f"going on after epoch {state['epoch']} of {run.resume_file}")
    print(
        ", ".join(f"{count} {split}" for split, count in counts.items())
        + f" utterances of {rows.shape[1]} features, on {device}"
    )

    def write_outputs() -> None:
        info = chosen | {"best_epoch": best["epoch"], "validation_ccc_loss": best["loss"]}
        save_regressor(target, best["weights"], info)
        plots.draw_curriculum_run(run.history, run.picture, target.name)

    def make_state() -> dict:
        return {
            "epoch": epoch,
            "weights": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best": best,
        }

    progress = tqdm(range(first, args.epoch), initial=first, total=args.epoch, unit="epoch", disable=None)
    for epoch in progress:
        begin = time.monotonic()
        lr = curriculum.learning_rate(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        size = curriculum.training_size(args.order, epoch, len(names))
        loss = train_epoch(model, optimizer, rows, targets, order[:size], args, device, epoch)
        (prediction,) = in_batches(model, model, sets["Validation"][1], device, args.precision)
        held_out = 1 - concordance_cc(sets["Validation"][2].numpy(), prediction.numpy())
        seconds = round(time.monotonic() - begin, 3)
        run.end_epoch(
            {
                "epoch": epoch,
                "utterances": size,
                "lr": lr,
                "ccc_loss": loss,
                "validation_ccc_loss": held_out,
                "seconds": seconds,
            }
        )
        if best["weights"] is None or held_out < best["loss"]:
            weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
            best = {"loss": held_out, "epoch": epoch, "weights": weights}
        tqdm.write(
            f"epoch {epoch:3d}: {size} utterances, CCC loss {loss:.4f}, validation CCC loss {held_out:.4f}, "
            f"{seconds:.2f} s"
        )
        run.save_if_due(make_state, write_outputs)
    run.finish(write_outputs, best_epoch=best["epoch"], validation_ccc_loss=best["loss"])
    print(f"best validation CCC {1 - best['loss']:.3f} at epoch {best['epoch']}")
    print("\n".join(f"wrote {path}" for path in (target, run.log_file, run.picture)))


if __name__ == "__main__":
    arguments.run(main, get_args_parser())

"""Download the published v1.8 files: normalisation statistics, trained DeepEmoClusters and DeepMI values.

    python -m tools.fetch_v18

clones the original's public repository with git, checks each file against its git blob id at a pinned commit, and
writes them to NormTerm/v1.8, trained_SSLmodels_v1.8 and curriculum_metric_v1.8. If any check fails, nothing is written.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deepmi import cli
from deepmi.process import UserError
from deepmi.storage import prepare_folder, scratch_folder, write_atomically

URL = "https://github.com/winston-lin-wei-cheng/DeepMI-Curriculum-Metric"
COMMIT = "0f5294eaf95866e48dee2bf94a395bdb4cfafdd5"
SSL_NAME = "ResNetDeepEmoCluster_epoch200_batch512_50clusters"

# Path in the repository -> git blob id at that commit.
BLOBS = {
    "NormTerm/act_norm_means.mat": "8c11ff6f64a652df338e6714e019e50c2e850979",
    "NormTerm/act_norm_stds.mat": "0cddb5ec91a61393e1f96b6e1cf4b69a6a3f86e9",
    "NormTerm/dom_norm_means.mat": "d46db2f92ff7f98db11974b933eb2923a2707ded",
    "NormTerm/dom_norm_stds.mat": "2a50cdda96dbacc505807b48ab8e309733d863f1",
    "NormTerm/feat_norm_means.mat": "8edbbf22599173471cc933739c79a1282bf59154",
    "NormTerm/feat_norm_stds.mat": "2603ae691bd97848eac863cdf8e55fbd4ebc6569",
    "NormTerm/val_norm_means.mat": "0869c919c96b8c07e4abc43160578b1a37feab88",
    "NormTerm/val_norm_stds.mat": "5e8e3b89dca4af0d99dc1c15259a2a6f8c190e0a",
    "curriculum_metric_v1.8/DeepMI_50clusters@_Act.json": "e65b17d518a276ac8b90021e56b20bbce060c15a",
    "curriculum_metric_v1.8/DeepMI_50clusters@_Dom.json": "6962030462b6a2c527b287e7c5b4c5148485f859",
    "curriculum_metric_v1.8/DeepMI_50clusters@_Val.json": "2d6e3ca8af00353e20969dddc2ebbd9686ecb443",
    f"trained_SSLmodels_v1.8/{SSL_NAME}_Act.pth.tar": "661b07d192101163e065377909a56bc0a008ea31",
    f"trained_SSLmodels_v1.8/{SSL_NAME}_Dom.pth.tar": "0315d5758eb714d00cdad70141b350f539709b9a",
    f"trained_SSLmodels_v1.8/{SSL_NAME}_Val.pth.tar": "a3afa5687f4422b7c34e6fcbd682aba7af16f86b",
}


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--url", default=URL, metavar="URL", help="repository to clone, e.g. a mirror or a local clone")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())


def local_path(name: str) -> Path:
    """Where a file of the repository goes: its normalisation statistics get a separate folder beside the user's."""
    path = Path(name)
    return Path("NormTerm/v1.8") / path.name if path.parts[0] == "NormTerm" else path


def blob_id(content: bytes) -> str:
    """The id that git gives a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _git(*arguments: str) -> bytes:
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}  # do not ask for a password if the URL is wrong
    try:
        done = subprocess.run(["git", *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    except FileNotFoundError:
        raise UserError(
            "git is not installed; install it, or copy the files by hand (see each folder's README)."
        ) from None
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"git: {reason} (--url also takes a mirror or a local clone). Nothing was written.")
    return done.stdout


def fetch(url: str, commit: str, blobs: Mapping[str, str], target: Path) -> list[Path]:
    """Get files of a repository at a commit, and write them if all of them are correct.

    Args:
        url: what git can clone.
        commit: full commit id.
        blobs: path in the repository -> git blob id that its content must have.
        target: folder under which the files go, by `local_path`.
    Returns:
        The files, in the order of `blobs`.
    Raises:
        UserError: no git, no such repository or commit, a missing or different file. Then nothing is written.
    """
    files = {name: Path(target) / local_path(name) for name in blobs}
    if all(file.is_file() and blob_id(file.read_bytes()) == blobs[name] for name, file in files.items()):
        return list(files.values())
    contents = {}
    with scratch_folder(Path(target)) as scratch:
        clone = str(scratch / "clone")
        _git("clone", "--quiet", "--bare", "--filter=blob:none", "--", url, clone)
        for name, expected in blobs.items():
            contents[name] = _git("-C", clone, "cat-file", "blob", f"{commit}:{name}")
            if blob_id(contents[name]) != expected:
                raise UserError(f"{url}: {name} is not the published file (git blob {expected}). Nothing was written.")
    for name, file in files.items():
        prepare_folder(file.parent)
        with write_atomically(file) as temporary:
            temporary.write_bytes(contents[name])
    return list(files.values())


def main(args: argparse.Namespace) -> None:
    """Fetch the v1.8 files into the current folder."""
    for file in fetch(args.url, COMMIT, BLOBS, Path.cwd()):
        print(f"checked {file.relative_to(Path.cwd())}")
    print(
        "Use them with --norm-dir NormTerm/v1.8 --model-dir trained_SSLmodels_v1.8 (extract_DeepMI.py) and "
        "--metric-dir curriculum_metric_v1.8 (training_Curriculum.py)."
    )


if __name__ == "__main__":
    cli.run(main, ARGS)

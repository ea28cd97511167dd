"""What the documentation says can be done: every command parses, every file exists, every example is right."""

import doctest
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, STAGES

from tools import prepare_corpus

FOLDERS = (".", "docs", "benchmarks", "NormTerm", "trained_SSLmodels_v1.8", "curriculum_metric_v1.8")
PAGES = [path for folder in FOLDERS for path in sorted(ROOT.glob(f"{folder}/*.md")) if path.name != "CHANGELOG.md"]
RUNS = sorted((ROOT / "runs").glob("*.sh"))
# Commands that the shell below only records, and those that it runs: what a script needs to go through its lines.
RECORDED = ("python", "python3", "torchrun", "pip", "make", "git", ".venv/bin/python")
RUN = ("bash", "cat", "dirname", "find", "grep", "mkdir", "realpath", "sort", "tail", "tee")
STUB = """#!/bin/sh
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\n'; } >> "$RECORD"
echo '(CCC)'
"""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(page: Path, kind: str) -> str:
    """The content of all fenced blocks of a kind, one after the other."""
    return "\n".join(re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.S | re.M))


@pytest.fixture
def shell(tmp_path):
    """Runs a text as a shell does, line continuations, loops and variables included, and returns its commands.

    Returns a list of [command, argument, ...]. A command that is not in RECORDED, or a variable without a value, fails.
    """
    tools, record = tmp_path / "bin", tmp_path / "record"
    for command in RECORDED:
        stub = (tmp_path / command) if "/" in command else (tools / command)
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(STUB)
        stub.chmod(0o755)
    for command in RUN:
        (tools / command).symlink_to(shutil.which(command))
    (tmp_path / ".venv/bin/activate").touch()
    for folder in ("NormTerm", "Models", "curriculum_metric", "results", "corpus", "pool"):  # of runs/*.sh
        (tmp_path / "out" / folder).mkdir(parents=True)

    def commands(text: str, *argv: object, **environment: str) -> list[list[str]]:
        record.write_text("")
        done = subprocess.run(
            [shutil.which("bash"), "-euo", "pipefail", "-c", text, "bash", *map(str, argv)],
            cwd=tmp_path,
            env={"PATH": str(tools), "RECORD": str(record)} | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return [line.split("\0")[:-1] for line in record.read_text().split("\n") if line]

    return commands


def run_script(shell, name: str, *argv: object) -> list[list[str]]:
    """The commands of a script of runs/."""
    return shell(f'bash "{ROOT / "runs" / name}" "$@"', *argv, DEEPMI_CORPUS="out/corpus", DEEPMI_UNLABELED="out/pool")


SCRIPT_ARGUMENTS = {
    "demo.sh": ["out"],
    "emodb.sh": ["ratings.csv", "clips", "out"],
    "evidence.sh": ["corpus", "features", "out"],
    "msp_podcast_v1.8.sh": ["out"],
}


def script_of(command: list[str]) -> tuple[str, list[str]] | None:
    """(module, its arguments) of a command that runs a script of the program; None for any other command."""
    program, *argv = command
    if program == "torchrun":
        assert argv[0] == "--nproc-per-node" and argv[1].isdecimal()
        argv = argv[2:]
    elif not program.startswith("python"):
        return None
    if argv[0] == "-m":
        return argv[1], argv[2:]
    assert (ROOT / Path(argv[0]).name).is_file(), f"no script {argv[0]}"
    return Path(argv[0]).stem, argv[1:]


def parse(command: list[str]):
    """Check a recorded command; (module, parsed arguments) where it runs a script of the program."""
    script = script_of(command)
    if script is None:
        program, verb, *argv = command
        if program == "make":
            assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(), re.M)
        elif program == "pip" and argv[0] == "-r":
            assert (ROOT / argv[1]).is_file()
        return None
    module, argv = script
    if module == "pytest":
        assert (ROOT / argv[0]).is_file()
        return None
    return module, importlib.import_module(module).get_args_parser().parse_args(argv)


def chosen(command: list[str]) -> tuple[str, dict]:
    """Module and arguments of a command, but for where things are."""
    module, args = parse(command)
    return module, {name: value for name, value in vars(args).items() if name not in ("out_dir", "corpus", "unlabeled")}


@pytest.mark.parametrize("page", [page for page in PAGES if "```sh" in page.read_text()], ids=name_of)
def test_every_command_of_a_page_parses(page, shell):
    commands = shell(fenced(page, "sh"))
    assert commands
    for command in commands:
        parse(command)


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_every_command_of_a_script_parses_and_every_stage_runs(path, shell):
    modules = [parse(command)[0] for command in run_script(shell, path.name, *SCRIPT_ARGUMENTS[path.name])]
    if path.name == "evidence.sh":
        assert modules == ["norm_para", *["tools.compare_curricula"] * 10, "benchmarks.evidence"]
    else:
        prepared = path.name == "emodb.sh"  # tools.prepare_corpus writes the normalisation statistics there
        assert set(STAGES[prepared:]) <= set(modules)


def test_the_readme_has_the_commands_of_the_scripts(shell):
    readme = [chosen(command) for command in shell(fenced(ROOT / "README.md", "sh")) if command[0] == "python"]
    demo = [chosen(command) for command in run_script(shell, "demo.sh", "out")]
    arousal = [command for command in demo if command[1].get("emo_attr", ["Act"]) == ["Act"]]
    paper = [chosen(command) for command in run_script(shell, "msp_podcast_v1.8.sh", "out")]
    valence = [command for command in paper if command[1].get("emo_attr", ["Val"]) == ["Val"]]
    first = readme.index(arousal[0])
    assert readme[first : first + len(arousal) + len(valence)] == arousal + valence


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_exists(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, section = target.partition("#")
        if target.startswith("https://") or not file:
            continue
        linked = (page.parent / file).resolve()
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)", linked.read_text(), re.M) if section else []
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not section or section in anchors, target
    for quoted in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(r"(tools|docs|benchmarks|examples|tests|runs|images|deepmi)/[\w./]*", quoted):
            assert (ROOT / quoted).exists(), quoted
        elif re.fullmatch(r"(tools|benchmarks|examples)\.\w+", quoted):
            assert (ROOT / quoted.replace(".", "/")).with_suffix(".py").is_file(), quoted
        elif re.fullmatch(r"\w+\.py", quoted):
            assert any((ROOT / folder / quoted).is_file() for folder in (".", "deepmi", "tools")), quoted


def test_every_flag_that_a_page_names_is_one_of_the_program():
    folders = (".", "deepmi", "tools", "benchmarks", "examples")
    sources = [path.read_text() for folder in folders for path in ROOT.glob(f"{folder}/*.py")]
    known = {flag for source in sources for flag in re.findall(r'"(--?[\w-]+)"', source)}
    kinds = prepare_corpus.get_args_parser()._subparsers._group_actions[0].choices.values()  # some flags are composed
    known |= {flag for kind in kinds for action in kind._actions for flag in action.option_strings}
    known |= {"--help", "--no-resume", "--nproc-per-node", "--resolution", "-r", "-o", "-c"}
    for page in PAGES:
        for quoted in re.findall(r"`([^`\n]+)`", page.read_text()):
            assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", quoted)) <= known, quoted


def test_the_examples_for_other_trainers_are_right():
    examples = fenced(ROOT / "docs/other-trainers.md", "pycon")
    test = doctest.DocTestParser().get_doctest(examples, {}, "docs/other-trainers.md", None, None)
    assert doctest.DocTestRunner().run(test) == (0, len(test.examples)) and test.examples
    exec(fenced(ROOT / "docs/other-trainers.md", "python"), {})


def test_the_package_needs_numpy_alone(tmp_path):
    shutil.copytree(ROOT / "deepmi", tmp_path / "deepmi")
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'scipy', 'pandas', 'faiss', 'joblib', 'sklearn']))\n"
    code += fenced(ROOT / "docs/other-trainers.md", "python")
    python = [sys.executable, "-c", code]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

"""The installed command `allinone`: one entry to all programs of the project.

    allinone train RECIPE [options]
    allinone finetune BENCHMARK [options]
    allinone env

Each program is imported only when it is called, and parses its options before it imports torch, so
that every --help answers at once. The scripts (`python pretrain/train.py`) run the same functions.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from allinone.common.command_line import (
    CompletionRequest,
    completing,
    pick,
    run_command,
    show_program_as,
)
from allinone.common.errors import InputError

PROG = "allinone"


@dataclass(frozen=True)
class Command:
    """A program with a `main(argv) -> int`."""

    help: str
    module: str
    script: str = ""
    """Name that the program gives itself in usage and errors; replaced by `allinone NAME`."""
    completes: bool = True
    """The program parses with common/command_line.py, so its options can be completed."""


COMMANDS = {
    "train": Command("pre-train a recipe", "allinone.pretrain.train", "pretrain/train.py"),
    "finetune": Command("fine-tune and evaluate on a benchmark", "allinone.finetune.command"),
    "zero-shot": Command("evaluate on several retrieval benchmarks", "allinone.tools.zero_shot"),
    "prepare": Command("convert a data set to shards", "allinone.tools.prepare"),
    "unpack": Command("unpack Parquet files with media into tars", "allinone.tools.unpack"),
    "check": Command("check a prepared data set", "allinone.tools.check_data"),
    "plan": Command("plan memory, time and data for GPUs", "allinone.tools.plan", "tools/plan.py"),
    "convert": Command("convert weights", "allinone.tools.convert", "tools/convert.py"),
    "predict": Command("use a model on own media", "allinone.tools.predict", "tools/predict.py"),
    "index": Command("index a folder of videos", "allinone.tools.index", "tools/index.py"),
    "search": Command("search an index", "allinone.tools.search", "tools/search.py"),
    "app": Command("open a page that searches an index", "allinone.tools.app", "tools/app.py"),
    "watch": Command("follow a run", "allinone.tools.watch", "tools/watch.py"),
    "report": Command("write the page of one or more runs", "allinone.tools.report"),
    "demo": Command("prepare, train and evaluate the demo", "allinone.examples.demo"),
    "cloze": Command("fill masked words, with attributions", "allinone.tools.cloze"),
    "clusters": Command("cluster patch tokens", "allinone.tools.clusters"),
    "rolls": Command("draw how tokens roll through frames", "allinone.tools.rolls"),
    "drill": Command("break a training run on purpose", "allinone.tools.drill", completes=False),
    "first-error": Command(
        "find the first error in a job's logs", "allinone.tools.first_error", completes=False
    ),
    "node-check": Command("check the nodes of a job", "allinone.tools.node_check", completes=False),
    "env": Command("print versions for a bug report", "allinone.env"),
}
COMPLETION = {
    # bash splits words at "=": `--roll=fl` arrives as three, and `--roll=` as two
    "bash": """\
_allinone() {
    local words current=${COMP_WORDS[COMP_CWORD]}
    if [[ $current == "=" ]]; then current=""; fi
    words=$(allinone --complete "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null)
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _allinone allinone
""",
    # zsh and fish keep `--roll=fl` as one word, whose part before "=" asks for the values
    "zsh": """\
_allinone() {
    local -a before found
    before=(${words[2,CURRENT-1]})
    if [[ $PREFIX == --*=* ]]; then
        before+=(${PREFIX%%=*})
        compset -P 1 '*='
    fi
    found=(${(f)"$(allinone --complete $before 2>/dev/null)"})
    compadd -a found || _files
}
compdef _allinone allinone
""",
    # -f: without it, fish mixes file names into every list
    "fish": """\
function __allinone_complete
    set -l before (commandline -opc)[2..-1]
    set -l current (commandline -ct)
    set -l prefix ""
    if string match -q -- '--*=*' $current
        set -a before (string split -m 1 = -- $current)[1]
        set prefix (string split -m 1 = -- $current)[1]=
    end
    set -l found (allinone --complete $before 2>/dev/null)
    if set -q found[1]
        printf '%s\\n' $prefix$found
    else
        __fish_complete_path $current
    end
end
complete -c allinone -f -a '(__allinone_complete)'
""",
}
"""Shell → code that asks `allinone --complete WORDS…` for the words that may follow."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(arguments))


def _run(argv: list[str]) -> int:
    if argv and argv[0].partition("=")[0] == "--completion":
        shell = argv[0].partition("=")[2] or "".join(argv[1:2])
        if shell not in COMPLETION:
            raise InputError(f"--completion {shell}: give one of {', '.join(COMPLETION)}")
        print(COMPLETION[shell], end="")
        return 0
    if argv and argv[0] == "--complete":
        # one word a line, and nothing for no word: an empty line would count as an offer in fish
        for word in complete(argv[1:]):
            print(word)
        return 0
    return dispatch(argv)


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that the first argument names; returns its exit code."""
    name = pick(
        {name: command.help for name, command in COMMANDS.items()},
        argv,
        prog=PROG,
        kind="command",
        description=(
            "All-in-one video-language pre-training.\n"
            "`allinone --completion bash|zsh|fish` prints shell completion,"
            " `allinone --version` the version."
        ),
    )
    command = COMMANDS[name]
    # one program for all benchmarks: its second word selects a script with options of its own
    if name == "finetune":
        return finetune(argv[1:])
    # now and not at the top: each program imports its own libraries, and --help must answer at once
    module = import_module(command.module)
    script = command.script or f"{command.module.removeprefix('allinone.').replace('.', '/')}.py"
    show_program_as(script, f"{PROG} {name}")
    code: int = module.main(list(argv[1:]))
    return code


def finetune(argv: Sequence[str]) -> int:
    """`allinone finetune BENCHMARK [options]`; returns the exit code."""
    from allinone.finetune import own
    from allinone.finetune.benchmarks import benchmark_names, load_benchmark
    from allinone.finetune.command import main as run_benchmark

    prog = f"{PROG} finetune"
    names = {own.NAME: "videos of your own: retrieval, questions, multiple choice or labels"}
    name = pick(names | benchmark_names(), argv, prog=prog, kind="benchmark")
    if name == own.NAME:
        return own.main(argv[1:], f"{prog} {name}")
    code: int = run_benchmark(load_benchmark(name), list(argv[1:]), f"{prog} {name}")
    return code


def complete(words: Sequence[str]) -> list[str]:
    """Words that may follow `allinone WORDS…`; empty where a file name is expected."""
    words = [word for word in words if word != "="]  # of bash, between a flag and its value
    if words == ["--completion"]:
        return list(COMPLETION)
    # argparse cannot be asked for its options without running the program
    if words and words[0] in COMMANDS and not COMMANDS[words[0]].completes:
        return ["--help"]
    # anything printed would become an offer of the shell
    silent = io.StringIO()
    try:
        with completing(), contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent):
            dispatch(words)
    except CompletionRequest as request:
        top = ["--completion"] if not words else []
        return [*request.words, *top]
    except (SystemExit, Exception):  # noqa: BLE001 - no completion is better than a traceback
        pass
    return []

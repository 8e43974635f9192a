"""Entry point: subcommands, and errors told in one or two lines with exit status 2."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentError
from rich.console import Console

from kedit.cli.options.messages import Interrupted, check_words, explain, of_kedit, printable
from kedit.cli.options.nulls import accept_null
from kedit.cli.options.quiet import set_up_logging
from kedit.errors import KeditError, shown
from kedit.runtime import launcher
from kedit.runtime.signals import Stopped, Stopper
from kedit.version import __version__

USAGE = """\
usage: kedit COMMAND [OPTIONS]

  edit           one fact, and what the model then says:       kedit edit smollm2-135m "The capital of {} is" \\
                                                                 --subject France --target Lyon
  ask            a model, with saved edits or without:         kedit ask smollm2-135m --delta DIR "Paris is in"
  fit            edit a model and measure what the edits did:  kedit fit --config configs/rome_smollm2.yaml
  ability        what it can do besides what was edited:       kedit ability smollm2-135m --delta DIR
  judge          free answers of a run, judged by a model:     kedit judge RUN --url URL --model NAME
  show           what the model said before, and says now:     kedit show RUN
  plan           memory that a run will take, phase by phase:  kedit plan rome_smollm2
  stats          covariance of a model's keys, ahead of a run: kedit stats --lm.name smollm2-135m
  trace          layers that a model recalls facts in:         kedit trace --data Facts --data.limit 50 --out trace
  probe-anchors  layers that STEAM's anchors work in:          kedit probe-anchors --data Facts --out probe
  sweep          a grid of runs, one after another:            kedit sweep slurm/sweeps/smollm2.yaml
  collect        one table over the runs of a sweep:           kedit collect slurm/sweeps/smollm2.yaml
  compare        its arms beside one of them, with a figure:   kedit compare slurm/sweeps/smollm2.yaml
  report         one page about runs, with all tables:         kedit report slurm/sweeps/smollm2.yaml
  slurm          the same sweep on a cluster:                  kedit slurm submit slurm/sweeps/smollm2.yaml
  delta          look at, compare, join and export deltas:     kedit delta show runs/NAME/delta
  data           what a file of facts holds, before a run:     kedit data check my_facts.jsonl
  ls             methods, data sets, known models, configs:    kedit ls
  config         list, show or copy the configs of kedit:      kedit config copy rome_smollm2
  env            what a bug report needs:                      kedit env
  from-easyedit  a config from EasyEdit's hyperparameters:     kedit from-easyedit hparams.yaml

kedit COMMAND --help lists the options of a command; kedit --version says which kedit this is.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args: What stands after `kedit` on the command line; None takes it from there.

    Raises:
        SystemExit: With status 2 after an error of the user's, 130, 138 or 143 after Ctrl-C, SIGUSR1 or SIGTERM; what
            there is to say went to standard error.
    """
    words = list(sys.argv[1:] if args is None else args)
    set_up_logging()
    out = Console(soft_wrap=True, highlight=False)
    if not words or words[0] in ("-h", "--help", "help"):
        out.print(USAGE, end="", markup=False)
        return
    if words[0] == "--version":
        out.print(f"kedit {__version__}")
        return
    commands = _commands()
    accept_null()
    try:
        if words[0] not in commands:
            raise KeditError(f"there is no command {shown(words[0])}; there are {', '.join(commands)}")
        check_words(words[1:])
        with Stopper():
            commands[words[0]](words[1:])
    except KeyboardInterrupt:
        _say("interrupted")
        raise SystemExit(130) from None
    except Interrupted as stop:
        if launcher.number() > 0:
            raise SystemExit(0) from None  # the first process says it
        _say(f"interrupted by {signal.Signals(stop.status - 128).name}; {stop}")
        raise SystemExit(stop.status) from None
    except Stopped as stop:
        _say(f"interrupted by {stop.number.name}")
        raise
    except ArgumentError as error:
        _fail(of_kedit(error) or explain(str(error)))
    except UnicodeDecodeError as error:
        _fail(f"config: the file is no UTF-8 text ({error.reason} at byte {error.start})")
    except (KeditError, TypeError, ValueError) as error:
        if (message := of_kedit(error)) is None:
            raise
        _fail(message)
    except Exception:
        _let_first_speak()
        raise


def _commands() -> dict[str, Callable[[list[str]], None]]:
    """Command -> what runs it; imported when needed, so that `kedit --help` is quick."""

    def edit(words: list[str]) -> None:
        from kedit.cli.commands.edit import edit

        edit(words)

    def ask(words: list[str]) -> None:
        from kedit.cli.commands.ask import ask

        ask(words)

    def fit(words: list[str]) -> None:
        from kedit.cli.options.first_look import first_look
        from kedit.cli.options.found import found_configs
        from kedit.cli.options.help import PAGE, topic_of

        if topic_of(words) == "":
            Console(soft_wrap=True, highlight=False).print(PAGE.read_text(encoding="utf-8"), end="", markup=False)
            return
        words = found_configs(words)
        first_look(words)
        from kedit.cli.commands.fit import fit

        fit(words)

    def ability(words: list[str]) -> None:
        from kedit.cli.commands.ability import ability

        ability(words)

    def judge(words: list[str]) -> None:
        from kedit.cli.commands.judge import judge

        judge(words)

    def show(words: list[str]) -> None:
        from kedit.cli.commands.show import show

        show(words)

    def plan(words: list[str]) -> None:
        from kedit.cli.commands.plan import plan

        plan(words)

    def stats(words: list[str]) -> None:
        from kedit.cli.commands.stats import stats

        stats(words)

    def trace(words: list[str]) -> None:
        from kedit.cli.commands.trace import trace_command

        trace_command(words)

    def probe_anchors(words: list[str]) -> None:
        from kedit.cli.commands.probe_anchors import probe_anchors

        probe_anchors(words)

    def sweep(words: list[str]) -> None:
        from kedit.cli.commands.sweep import sweep

        sweep(words)

    def collect(words: list[str]) -> None:
        from kedit.cli.commands.collect import collect

        collect(words)

    def compare(words: list[str]) -> None:
        from kedit.cli.commands.compare import compare

        compare(words)

    def report(words: list[str]) -> None:
        from kedit.cli.commands.report import report

        report(words)

    def slurm(words: list[str]) -> None:
        from kedit.cli.commands.slurm import slurm

        slurm(words)

    def delta(words: list[str]) -> None:
        from kedit.cli.commands.delta import delta

        delta(words)

    def data(words: list[str]) -> None:
        from kedit.cli.commands.data import data

        data(words)

    def ls(words: list[str]) -> None:
        from kedit.cli.commands.ls import ls

        ls(words)

    def config(words: list[str]) -> None:
        from kedit.cli.commands.config import config

        config(words)

    def env(words: list[str]) -> None:
        from kedit.cli.commands.env import env

        env(words)

    def from_easyedit(words: list[str]) -> None:
        from kedit.cli.commands.from_easyedit import from_easyedit

        from_easyedit(words)

    return {
        "edit": edit,
        "ask": ask,
        "fit": fit,
        "ability": ability,
        "judge": judge,
        "show": show,
        "plan": plan,
        "stats": stats,
        "trace": trace,
        "probe-anchors": probe_anchors,
        "sweep": sweep,
        "collect": collect,
        "compare": compare,
        "report": report,
        "slurm": slurm,
        "delta": delta,
        "data": data,
        "ls": ls,
        "config": config,
        "env": env,
        "from-easyedit": from_easyedit,
    }


def _fail(message: str) -> None:
    _let_first_speak()
    number = launcher.number()
    _say(f"error: {message}" if number == 0 else f"process {number}: error: {message}")
    raise SystemExit(2)


def _let_first_speak() -> None:
    """What fails in all processes alike is said once: the first one ends the others."""
    if launcher.number() > 0:
        time.sleep(5)


def _say(message: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"kedit: {printable(message)}", markup=False)

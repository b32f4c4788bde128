"""The command that makes W&B show what runs log."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from distsynth.cli.arguments import Out, parse
from distsynth.cli.messages import UsageError

logger = logging.getLogger(__name__)

WORKSPACE_FILE, REPORT_FILE, SCRIPT_FILE = "workspace.json", "report.json", "apply.py"


def dashboard(args: Sequence[str]) -> None:
    """write a W&B workspace and report for the runs of a project or a sweep"""

    @dataclass(frozen=True)
    class Show:
        """Write a W&B workspace and a report as JSON files, or send them with --online.

            distsynth dashboard --project distsynth --group lambdas
            distsynth dashboard --sweep sweeps/lambdas --entity TEAM --online

        Without --online nothing is sent and no login is needed; apply.py, which is written beside
        the files, sends them from any machine with Python: python dashboard/apply.py ENTITY
        """

        project: Annotated[str | None, arg(metavar="PROJECT")] = None
        """W&B project of the runs."""
        entity: Annotated[str | None, arg(metavar="ENTITY")] = None
        """User or team that owns it; needed with --online."""
        group: Annotated[str | None, arg(metavar="GROUP")] = None
        """Only runs of this W&B group."""
        fields: Annotated[tuple[str, ...], arg(metavar="FIELD...")] = ()
        """Searched fields of the configuration, such as loss.lambda_bce."""
        objective: Annotated[tuple[str, ...], arg(metavar="METRIC...")] = ()
        """Stitched validation metrics of the search, psnr by default; the first one ranks."""
        sweep: Annotated[str | None, arg(metavar="FOLDER")] = None
        """Folder of a sweep, a path or a URL, which gives project, group, fields and objective."""
        out: Out = Path("dashboard")
        """Folder to write the files to."""
        overwrite: bool = False
        """Replace the files."""
        online: bool = False
        """Send both to W&B's server with your login; every call creates new ones."""

    given = parse("dashboard", Show, args)
    if given.sweep is not None and (given.group or given.fields or given.objective):
        raise UsageError("--sweep gives --group, --fields and --objective: leave them out")
    if given.sweep is None and not given.project:
        raise UsageError("say which runs: give --project PROJECT or --sweep FOLDER")
    from distsynth.reporting.dashboard import Dashboard, apply, report, spec_json, workspace

    if given.sweep is not None:
        from distsynth.sweep.folder import SweepFolder
        from distsynth.sweep.page import sweep_dashboard

        plan = SweepFolder(given.sweep).plan()
        shown = sweep_dashboard(plan, given.project, given.entity)
    else:
        assert given.project
        objectives = given.objective or ("psnr",)
        shown = Dashboard(given.project, given.entity or "", given.group, given.fields, objectives)
    if given.online:
        print(*apply(shown), sep="\n")
        return
    from sharding.io.atomic import atomic_write, refuse_existing
    from sharding.io.page import asset

    files = {WORKSPACE_FILE: workspace, REPORT_FILE: report}
    written = [given.out / name for name in (*files, SCRIPT_FILE)]
    refuse_existing(written, given.overwrite)
    for name, build in files.items():
        atomic_write(given.out / name, spec_json(build(shown)))
    atomic_write(given.out / SCRIPT_FILE, asset("distsynth.reporting/apply.py"))
    print(*written, sep="\n")
    again = [*args, *(() if shown.entity else ("--entity", "ENTITY")), "--online"]
    script = shlex.join(["python", str(given.out / SCRIPT_FILE), shown.entity or "ENTITY"])
    logger.info(
        "nothing was sent. To send these files, from here or from another machine: "
        f"{script}\nTo make and send them at once: distsynth dashboard {shlex.join(again)}"
    )

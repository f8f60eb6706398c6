"""Job arrays: which units of a run an element trains, and scripts that start an element for each unit."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from poisonkit.errors import require

OPTION = "--print-job"
UNDEFENDED = "undefended"


def places(only: str, stacks: int) -> list[int]:
    """Where the units of ``--only`` are among all: the undefended network comes first, stack i is number i + 1."""
    found: set[int] = set()
    for part in only.split(","):
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first, first]
        good = all(end.isdecimal() for end in ends) and int(ends[0]) <= int(ends[1]) < stacks
        rule = f"{UNDEFENDED}, numbers below {stacks} and ranges, such as 0-3,7"
        require(good or part == UNDEFENDED, "--only", rule, repr(part))
        found.update([0] if part == UNDEFENDED else range(int(ends[0]) + 1, int(ends[1]) + 2))
    return sorted(found)


def named(places: Iterable[int]) -> str:
    """The shortest ``--only`` that means these places."""
    runs: list[list[int]] = []
    for stack in sorted(place - 1 for place in places if place):
        if runs and stack == runs[-1][1] + 1:
            runs[-1][1] = stack
        else:
            runs.append([stack, stack])
    parts = [f"{first}-{last}" if last > first else str(first) for first, last in runs]
    return ",".join([*parts, *([UNDEFENDED] if 0 in places else [])])


def script(kind: str, command: str, stacks: int, threads: int, gpu: bool) -> str:
    """An array script for SLURM or an indexed Job for Kubernetes that trains each unit of ``command`` on its own."""
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word.startswith(OPTION))
    shown = shlex.join(words[:at] + words[at + (1 if "=" in words[at] else 2) :])
    run = f'exec {shown} --only "${{units[${_INDEX[kind]}]}}"'
    units = f"units=({UNDEFENDED} {{0..{stacks - 1}}})"
    return _SCRIPTS[kind].format(
        last=stacks,
        count=stacks + 1,
        threads=threads,
        units=units,
        run=run,
        shown=shown,
        gres="#SBATCH --gres=gpu:1\n" if gpu else "",
        limit=f'cpu: "{threads}"' + (", nvidia.com/gpu: 1" if gpu else ""),
    )


_INDEX = {"slurm": "SLURM_ARRAY_TASK_ID", "kubernetes": "JOB_COMPLETION_INDEX"}
_SCRIPTS = {
    "slurm": """\
#!/bin/bash
#SBATCH --job-name=poisonkit
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task={threads}
{gres}#SBATCH --requeue
# Each element trains one unit. When all have ended, the command without --only measures and reports:
# {shown}
set -euo pipefail
{units}
{run}
""",
    "kubernetes": """\
# Each pod trains one unit. When all have ended, the command without --only measures and reports:
# {shown}
apiVersion: batch/v1
kind: Job
metadata:
  name: poisonkit
spec:
  completionMode: Indexed
  completions: {count}
  parallelism: {count}
  backoffLimitPerIndex: 3
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: poisonkit
          image: poisonkit  # one that holds this version of it
          workingDir: /shared
          command: [bash, -c]
          args:
            - |
              {units}
              {run}
          resources:
            limits: {{{limit}}}
          volumeMounts:
            - {{name: shared, mountPath: /shared}}
      volumes:
        - name: shared  # with the data and the run, seen by all pods
          persistentVolumeClaim: {{claimName: poisonkit}}
""",
}
KINDS = tuple(_SCRIPTS)

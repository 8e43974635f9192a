"""A Slurm for tests: `sbatch` runs what it is given at once, element after element, as a node would."""

from __future__ import annotations

import sys
from pathlib import Path

SBATCH = r"""#!/bin/bash
# hold: queue only. refuse: a script whose name has this in it is refused.
echo "$@" >> "$STUB/calls"
script=${!#}
if [[ -f $STUB/refuse && $script == *$(cat "$STUB/refuse")* ]]; then
    echo "sbatch: error: invalid partition specified: nowhere" >&2
    echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
    exit 1
fi
job=$(($(cat "$STUB/last" 2> /dev/null || echo 100) + 1))
echo "$job" > "$STUB/last"
echo "$job"
[[ -f $STUB/hold ]] && exit 0
output=$(sed -n 's/^#SBATCH --output=//p' "$script" | tr -d '"')
array=$(sed -n 's/^#SBATCH --array=\([^%]*\).*/\1/p' "$script")
export SLURM_JOB_ID=$job SLURM_JOB_NAME=kedit SLURM_NNODES=1 SLURM_NTASKS=1 SLURM_NTASKS_PER_NODE=1
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_CPUS_PER_TASK=1
if [[ -z $array ]]; then
    bash "$script" &> "${output//%j/$job}"
    exit 0
fi
for part in ${array//,/ }; do
    for element in $(seq "${part%-*}" "${part#*-}"); do
        file=${output//%A/$job}
        SLURM_ARRAY_JOB_ID=$job SLURM_ARRAY_TASK_ID=$element bash "$script" &> "${file//%a/$element}"
    done
done
exit 0
"""
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
SQUEUE = '#!/bin/bash\necho "squeue $*" >> "$STUB/asked"\ncat "$STUB/queue" 2> /dev/null\nexit 0\n'
SACCT = '#!/bin/bash\n[[ -f $STUB/accounts ]] || exit 1\ncat "$STUB/accounts"\n'


def install(folder: Path) -> Path:
    """Writes the commands into a folder that then belongs on PATH; STUB must name the folder for their notes."""
    folder.mkdir(parents=True)
    kedit = f'#!/bin/bash\nexec {sys.executable} -m kedit "$@"\n'
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE, "sacct": SACCT, "kedit": kedit}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder

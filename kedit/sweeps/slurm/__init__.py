"""Sweeps on Slurm: sbatch scripts from templates, what the queue says, and what was submitted."""

"""Options of the trainer that every run of kedit has, unless the user says otherwise."""

from __future__ import annotations

TRAINER_DEFAULTS = {
    "devices": 1,
    "reload_dataloaders_every_n_epochs": 1,  # every epoch has its own edit batch
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "max_epochs": -1,  # as many as there are edit batches
    "enable_progress_bar": False,  # kedit's own shows edits
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}

"""Methods that fine-tune weights."""

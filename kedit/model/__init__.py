"""The model at hand: loading, where its modules are, its tokenizer, the fingerprint of its weights."""

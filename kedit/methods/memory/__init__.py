"""Methods that leave the weights alone and remember edits beside them."""

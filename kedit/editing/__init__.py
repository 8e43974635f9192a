"""One call to edit, and the edit is the user's: `edit`, the `Edit` that it returns, `ask`, `edited`.

Lightning runs inside, quiet; what is measured is a handful of sentences. Runs over data sets are `kedit fit`'s.
"""

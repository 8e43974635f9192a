"""EasyEdit's hyperparameter files as configurations of kedit: rules, tables of them, and the text that is written."""

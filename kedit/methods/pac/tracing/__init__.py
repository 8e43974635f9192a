"""Critical paths: which nodes of the FFN layers a fact runs through. Mathematics alone."""

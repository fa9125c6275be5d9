"""Every request: its inputs, its prerequisites and its plan. Pure functions over records."""

"""Programs to read and to start from. A package, so that no other distribution's ``examples`` is taken for it."""

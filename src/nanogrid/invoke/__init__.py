"""From an accepted call to its outcome, as seen by a controller."""

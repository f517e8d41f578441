"""What everything stands on: errors, configuration, run folders, seeds, progress."""

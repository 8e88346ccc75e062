"""What a power failure may leave: a recorder of writes and syncs, and a rebuilder of the possible states."""

//! Everything at once, from seeds: whatever the interleaving, what was acknowledged is there and nothing else is.

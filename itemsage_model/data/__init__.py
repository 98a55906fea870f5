"""Tables -> batches: pinned files, row groups, ragged arrays, the mixing of tasks, prefetching."""

"""Parts for authors of stores: options, paths, files, clocks, checked reads, matching, followers, orderly closing."""

"""Parts for authors of stores: options, reads by verb, waking of followers, clocks, file modes, orderly closing."""

"""Sequential recommendation with behaviour-dependent linear recurrent units (arXiv 2406.12580)."""

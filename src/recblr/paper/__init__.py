"""The paper's tables and figures, each by one command; a finished run is never made again."""

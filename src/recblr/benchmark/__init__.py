"""The measurements of ``recblr bench`` and of the paper's studies."""

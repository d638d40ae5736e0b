"""unforge: five image-forensics papers as one reproducible pipeline."""

__version__ = "0.1.0"

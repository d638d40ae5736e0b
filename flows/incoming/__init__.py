"""What others put under an S3 prefix, taken as hostile: looked at, taken in, or put into quarantine."""

"""Input, bundle and output on a real S3 server, through a proxy that spoils some of its answers."""

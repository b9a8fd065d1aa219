"""What operators and other programs talk to: the HTTP gateway, the metrics exporter and the `preceptor` command."""

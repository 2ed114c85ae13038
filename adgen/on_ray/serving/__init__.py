"""Single creatives on request, behind Ray Serve: an ingress that reads, and engines that make."""

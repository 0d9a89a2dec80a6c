"""The programs: relay, orchestrator and consumers, and the command line that starts them."""

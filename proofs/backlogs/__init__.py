"""What proof 2.5 measures with: long backlogs, transactions that stay open, and memory."""
